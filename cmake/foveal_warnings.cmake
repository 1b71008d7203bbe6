# foveal_warnings: the warnings of all of this project's own code. Link it PRIVATE.
add_library(foveal_warnings INTERFACE)
set(foveal_host_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    list(APPEND foveal_host_warnings -Wno-restrict) # false alarms on std::string's operator+: GCC bug 105651
endif()
target_compile_options(
    foveal_warnings
    INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:${foveal_host_warnings}>"
              # -Wpedantic rejects the line markers that nvcc writes; -Wconversion its host stubs.
              "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>")
if(FOVEAL_WERROR)
    target_compile_options(
        foveal_warnings INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:-Werror>"
                                  "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>" "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror>")
endif()

if(FOVEAL_SANITIZE)
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${FOVEAL_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer>")
    add_link_options("-fsanitize=${FOVEAL_SANITIZE}")
endif()
