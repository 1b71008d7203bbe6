# The library, its headers, the licence, the CMake package (find_package(foveal) gives foveal::foveal), the pkg-config
# file, and the target `uninstall`. All paths are relative to where the files lie: an installation can be moved.
include(CMakePackageConfigHelpers)

install(TARGETS foveal EXPORT foveal-targets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/foveal" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/doc/foveal")

if(FOVEAL_HAS_CUDA)
    get_target_property(foveal_cudart_dir foveal_cudart IMPORTED_LOCATION)
    cmake_path(GET foveal_cudart_dir PARENT_PATH foveal_cudart_dir)
endif()

set(foveal_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/foveal")
install(EXPORT foveal-targets NAMESPACE foveal:: DESTINATION "${foveal_package_dir}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/foveal-config.cmake.in"
                              "${PROJECT_BINARY_DIR}/foveal-config.cmake" INSTALL_DESTINATION "${foveal_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/foveal-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/foveal-config.cmake" "${PROJECT_BINARY_DIR}/foveal-config-version.cmake"
        DESTINATION "${foveal_package_dir}")

file(RELATIVE_PATH foveal_pc_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" foveal_pc_to_prefix "${foveal_pc_to_prefix}")
set(foveal_pc_run_path "")
set(foveal_pc_private "")
if(foveal_type STREQUAL "STATIC_LIBRARY")
    set(foveal_pc_private "Requires.private: libhwy\nLibs.private: -lstdc++ -lm -pthread")
    if(FOVEAL_HAS_CUDA)
        string(APPEND foveal_pc_private " -L${foveal_cudart_dir} -lcudart_static -ldl -lrt")
    endif()
elseif(NOT CMAKE_INSTALL_PREFIX STREQUAL "/usr")
    # The loader does not look elsewhere than in /usr by itself.
    set(foveal_pc_run_path " -Wl,-rpath,\${libdir}")
endif()
configure_file("${PROJECT_SOURCE_DIR}/cmake/foveal.pc.in" "${PROJECT_BINARY_DIR}/foveal.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/foveal.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

if(PROJECT_IS_TOP_LEVEL)
    add_custom_target(uninstall
        COMMAND "${CMAKE_COMMAND}" "-DMANIFEST=${PROJECT_BINARY_DIR}/install_manifest.txt"
                -P "${PROJECT_SOURCE_DIR}/cmake/uninstall.cmake"
        VERBATIM)
endif()
