# Decides whether the sm90 backend is built: sets FOVEAL_HAS_CUDA to ON or OFF and, if ON, enables the CUDA language.

# Which versions were tried, and what became of each: docs/measured/toolkits.md. A newer one is taken: should it spill
# registers or serialise wgmma, cmake/ptxas_gate.sh stops the build.
set(FOVEAL_CUDA_MINIMUM 13.0)
set(FOVEAL_CUDA_TRIED 13.5)

# Where nvcc is, or why there is none that will do. CMake alone would also look into /usr/local/cuda; AUTO must not:
# an nvcc that is not on PATH is one that the user does not want.
function(foveal_find_nvcc nvcc_out reason_out)
    set(nvcc "")
    set(reason "")
    if(CMAKE_CUDA_COMPILER)
        set(nvcc "${CMAKE_CUDA_COMPILER}")
    elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
        set(nvcc "$ENV{CUDACXX}")
    else()
        find_program(foveal_nvcc nvcc NO_CACHE NO_DEFAULT_PATH PATHS ENV PATH)
        if(foveal_nvcc)
            set(nvcc "${foveal_nvcc}")
        elseif(FOVEAL_CUDA STREQUAL "AUTO")
            set(reason "no nvcc on PATH and CUDACXX is not set (CUDACXX=$(.ci/cuda_toolchain) fetches one)")
        else()
            find_program(foveal_nvcc nvcc NO_CACHE PATHS /usr/local/cuda/bin)
            if(foveal_nvcc)
                set(nvcc "${foveal_nvcc}")
            else()
                set(reason "no nvcc on PATH or in /usr/local/cuda, and CUDACXX is not set")
            endif()
        endif()
    endif()

    if(nvcc)
        execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE status)
        if(NOT status EQUAL 0 OR NOT text MATCHES "release ([0-9]+\\.[0-9]+)")
            set(reason "'${nvcc} --version' fails")
        elseif(CMAKE_MATCH_1 VERSION_LESS FOVEAL_CUDA_MINIMUM)
            set(reason "${nvcc} is of CUDA ${CMAKE_MATCH_1}; the sm90 backend needs ${FOVEAL_CUDA_MINIMUM} or newer \
(${FOVEAL_CUDA_MINIMUM} to ${FOVEAL_CUDA_TRIED} were tried; ptxas of 12.8 and older serialises its wgmma)")
        endif()
    endif()
    set(${nvcc_out} "${nvcc}" PARENT_SCOPE)
    set(${reason_out} "${reason}" PARENT_SCOPE)
endfunction()

# foveal_cudart: the CUDA runtime's headers and its static library, of the toolkit that nvcc belongs to. That is all that
# is used of the toolkit, so that the packages of PyPI will do as one. CMake's own FindCUDAToolkit asks for more: for
# libcudart.so, which those lack, and up to CMake 3.25 for nvToolsExt, which CUDA 13 no longer has.
function(foveal_add_cudart)
    find_library(foveal_cudart_static cudart_static NO_CACHE NO_DEFAULT_PATH PATHS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
    if(NOT foveal_cudart_static)
        message(FATAL_ERROR "there is no libcudart_static.a where ${CMAKE_CUDA_COMPILER} links from: "
                            "${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES}")
    endif()
    add_library(foveal_cudart STATIC IMPORTED GLOBAL)
    set_target_properties(foveal_cudart PROPERTIES
        IMPORTED_LOCATION "${foveal_cudart_static}"
        INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}"
        INTERFACE_LINK_LIBRARIES "${CMAKE_DL_LIBS};rt;pthread")
endfunction()

if(NOT FOVEAL_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "FOVEAL_CUDA is '${FOVEAL_CUDA}'; it must be AUTO, ON or OFF")
endif()

set(FOVEAL_HAS_CUDA OFF)
if(FOVEAL_CUDA STREQUAL "OFF")
    set(foveal_backends "CPU only (FOVEAL_CUDA=OFF)")
else()
    foveal_find_nvcc(foveal_nvcc_path foveal_no_cuda_reason)
    if(NOT foveal_no_cuda_reason)
        if(NOT CMAKE_CUDA_COMPILER)
            set(ENV{CUDACXX} "${foveal_nvcc_path}")
        endif()
        include(CheckLanguage)
        check_language(CUDA)
        if(CMAKE_CUDA_COMPILER)
            set(FOVEAL_HAS_CUDA ON)
        else()
            unset(CMAKE_CUDA_COMPILER CACHE)
            set(foveal_no_cuda_reason "${foveal_nvcc_path} does not work with this host compiler")
        endif()
    endif()
    if(FOVEAL_HAS_CUDA)
        # The architecture is given by -gencode below: exactly sm_90a code, and no PTX beside it.
        set(CMAKE_CUDA_ARCHITECTURES OFF)
        set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
        enable_language(CUDA)
        # As words apart, which ccache can read: joined, the path of this build's folder is in its key.
        set(CMAKE_INCLUDE_SYSTEM_FLAG_CUDA "-isystem ")
        if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25.1, Debian 12's, knows nvcc only up to C++17
            set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
            set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
            set(CMAKE_CUDA_STANDARD_LATEST 20)
        endif()
        set(CMAKE_CUDA_STANDARD 20)
        set(CMAKE_CUDA_STANDARD_REQUIRED ON)
        foveal_add_cudart()
        add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_90a,code=sm_90a>")
        set(foveal_backends "CPU and sm90 backends (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, ${CMAKE_CUDA_COMPILER})")
    elseif(FOVEAL_CUDA STREQUAL "ON")
        message(FATAL_ERROR "FOVEAL_CUDA=ON, but ${foveal_no_cuda_reason}")
    else()
        set(foveal_backends "CPU only: ${foveal_no_cuda_reason}")
    endif()
endif()

message(STATUS "foveal: ${foveal_backends}")
set(FOVEAL_BACKENDS "${foveal_backends}" CACHE INTERNAL "Which backends this build has and why; `make demo` prints it")
add_compile_definitions(FOVEAL_HAS_CUDA=$<BOOL:${FOVEAL_HAS_CUDA}>)

# Every .cu of `target` is compiled under cmake/ptxas_gate.sh: a register spill, or wgmma that ptxas had to serialise,
# fails the build. The resources of each kernel are left in <object>.ptxas. A launcher that is asked for, such as ccache,
# runs under the gate, which reads what that repeats of an earlier compilation's report.
function(foveal_gate_ptxas target)
    set_target_properties(${target} PROPERTIES
        CUDA_COMPILER_LAUNCHER "${PROJECT_SOURCE_DIR}/cmake/ptxas_gate.sh;${CMAKE_CUDA_COMPILER_LAUNCHER}")
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v,-warn-spills>")
    # A fifth of the default's size.
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>")
endfunction()
