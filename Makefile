# The commands of this project. Each installs what it lacks, through apt; nvcc, where there is none, comes from PyPI into
# build/. With FOVEAL_CUDA=OFF behind the command, nvcc is neither fetched nor used.
#   make demo     build, then compute attention here, verify it and time it
#   make test     build everything, run all tests
#   make docs     build the Python package, run the documents' code, build the API reference
#   make install  build what a user needs, without tests, and install it under PREFIX (/usr/local); uninstall removes it
#   make format   rewrite the sources as clang-format 14 would
#   make clean    remove what was built
.PHONY: demo test docs install uninstall format clean configure

PREFIX ?= /usr/local

configure:
	@.ci/install_missing build
	@.ci/configure

demo: configure
	cmake --build --preset release --target foveal_tool
	@.ci/say_backend build/release
	build/release/bin/foveal bench

test: configure
	cmake --build --preset release
	ctest --preset release

docs: configure
	cmake --build --preset release
	.ci/python environment
	.ci/docs

install: configure
	cmake --build --preset release --target foveal foveal_tool
	cmake --install build/release --prefix "$(PREFIX)"

uninstall:
	cmake --build --preset release --target uninstall

format:
	@.ci/install_missing format
	@.ci/check_format --fix

clean:
	cmake -E rm -rf build
