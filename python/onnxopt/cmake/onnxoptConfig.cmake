# Kernels of your own for onnxopt:
#
#     find_package(onnxopt CONFIG REQUIRED)    # -Donnxopt_DIR=$(onnxopt --cmake-dir)
#     onnxopt_add_kernel(mine SOURCES mine.cc)
#
# builds libmine.so, which onnxruntime takes as a library of custom ops and `onnxopt bench-kernel --kernels libmine.so` measures.
get_filename_component(onnxopt_package "${CMAKE_CURRENT_LIST_DIR}/.." REALPATH)

if(NOT EXISTS "${onnxopt_package}/libonnxopt_ops.so")
  set(onnxopt_FOUND FALSE)
  set(onnxopt_NOT_FOUND_MESSAGE "${onnxopt_package} has no libonnxopt_ops.so: install onnxopt with its native part.")
  return()
endif()

if(NOT TARGET onnxopt::ops)
  add_library(onnxopt::ops SHARED IMPORTED)
  set_target_properties(onnxopt::ops PROPERTIES
    IMPORTED_LOCATION "${onnxopt_package}/libonnxopt_ops.so"
    IMPORTED_SONAME libonnxopt_ops.so
    INTERFACE_INCLUDE_DIRECTORIES "${onnxopt_package}/include"
    INTERFACE_COMPILE_FEATURES cxx_std_20)
endif()

# onnxopt_add_kernel(NAME SOURCES FILE...): a shared library of kernels, of C++ files or, where the project has the language CUDA, of .cu
# files. It finds libonnxopt_ops.so beside itself or in the package. Flags of instruction sets are those of the files:
# set_source_files_properties(mine_avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma").
function(onnxopt_add_kernel name)
  cmake_parse_arguments(PARSE_ARGV 1 kernel "" "" "SOURCES")
  if(NOT kernel_SOURCES OR kernel_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "onnxopt_add_kernel(${name} SOURCES FILE...) takes the files of the kernels, and nothing else.")
  endif()
  add_library(${name} SHARED ${kernel_SOURCES})
  target_link_libraries(${name} PRIVATE onnxopt::ops)
  # CMake before 3.26 does not know that nvcc has this standard.
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  set_target_properties(${name} PROPERTIES
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    CUDA_RUNTIME_LIBRARY Static
    BUILD_RPATH "$ORIGIN;${onnxopt_package}"
    INSTALL_RPATH "$ORIGIN;${onnxopt_package}")
endfunction()
