# The library, its headers, the CMake package (find_package(foveal) gives foveal::foveal) and the pkg-config file.
# All paths are relative to where the files lie: an installation can be moved.
include(CMakePackageConfigHelpers)

install(TARGETS foveal EXPORT foveal-targets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/foveal" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")

set(foveal_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/foveal")
install(EXPORT foveal-targets NAMESPACE foveal:: DESTINATION "${foveal_package_dir}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/foveal-config.cmake.in"
                              "${PROJECT_BINARY_DIR}/foveal-config.cmake" INSTALL_DESTINATION "${foveal_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/foveal-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/foveal-config.cmake" "${PROJECT_BINARY_DIR}/foveal-config-version.cmake"
        DESTINATION "${foveal_package_dir}")

file(RELATIVE_PATH foveal_pc_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" foveal_pc_to_prefix "${foveal_pc_to_prefix}")
configure_file("${PROJECT_SOURCE_DIR}/cmake/foveal.pc.in" "${PROJECT_BINARY_DIR}/foveal.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/foveal.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
