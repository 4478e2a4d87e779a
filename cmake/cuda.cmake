# The CUDA kernels. ONNXOPT_CUDA = auto (compiled where nvcc is found) | on (nvcc has to be there) | off.
# Everything but the launch is compiled by any compiler: tests run the kernels' code on the host.
add_library(onnxopt_cuda_host STATIC kernels/cuda/simt/simt.cc kernels/cuda/attention/emulate.cc
  kernels/cuda/elementwise/pack.cc kernels/cuda/elementwise/source.cc kernels/cuda/elementwise/emulate.cc
  kernels/cuda/nvrtc/cache.cc kernels/cuda/nvrtc/nvrtc.cc
  kernels/cuda/elementwise/embedded.cc kernels/cuda/gemm/plan.cc kernels/cuda/gemm/tensor_plan.cc kernels/cuda/gemm/emulate.cc
  kernels/cuda/norm/plan.cc kernels/cuda/norm/emulate.cc kernels/cuda/qgemm/plan.cc kernels/cuda/qgemm/emulate.cc
  kernels/cuda/qconv/plan.cc kernels/cuda/qconv/emulate.cc kernels/cuda/recurrence/plan.cc kernels/cuda/recurrence/emulate.cc)
onnxopt_own_code(onnxopt_cuda_host)
target_compile_options(onnxopt_cuda_host PRIVATE -O2 -ffp-contract=off -fno-math-errno)
target_link_libraries(onnxopt_cuda_host PUBLIC onnxopt_kernels ${CMAKE_DL_LIBS})

# The headers that expressions as CUDA source include, for NVRTC.
set(device_headers kernels/cuda/elementwise/functions.h kernels/cuda/elementwise/tensors.h)
set(embedded ${CMAKE_CURRENT_BINARY_DIR}/embedded/onnxopt_device_headers.inc)
string(REPLACE ";" "," header_list "${device_headers}")
add_custom_command(OUTPUT ${embedded}
  COMMAND ${CMAKE_COMMAND} -DROOT=${CMAKE_CURRENT_SOURCE_DIR} -DHEADERS=${header_list} -DTARGET=${embedded}
    -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed.cmake
  DEPENDS ${device_headers} cmake/embed.cmake VERBATIM)
target_sources(onnxopt_cuda_host PRIVATE ${embedded})
target_include_directories(onnxopt_cuda_host PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/embedded)

set(ONNXOPT_HAVE_CUDA OFF)
set(cuda_problem "")
if(ONNXOPT_CUDA STREQUAL "off")
  set(cuda_problem "ONNXOPT_CUDA=off")
else()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90")  # machine code for 8.x and 9.0; newer devices compile the PTX of 9.0
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_problem "no nvcc was found")
  else()
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know that nvcc has this standard
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.1)
      set(cuda_problem "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.1")
    else()
      set(ONNXOPT_HAVE_CUDA ON)
    endif()
  endif()
endif()
if(ONNXOPT_CUDA STREQUAL "on" AND NOT ONNXOPT_HAVE_CUDA)
  message(FATAL_ERROR "ONNXOPT_CUDA=on, and ${cuda_problem}: install nvcc 12.1 or newer, or set CUDACXX to its path.")
endif()
if(NOT ONNXOPT_HAVE_CUDA)
  message(STATUS "CUDA kernels: not compiled (${cuda_problem})")
  return()
endif()
message(STATUS "CUDA kernels: compiled by nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

# Contraction stays off, as on the CPU: operations of an expression are rounded one by one.
add_library(onnxopt_cuda STATIC kernels/cuda/runtime.cu kernels/cuda/timing.cu kernels/cuda/attention/attention.cu
  kernels/cuda/elementwise/interpreter.cu kernels/cuda/elementwise/compiled.cu kernels/cuda/gemm/gemm.cu kernels/cuda/gemm/tensor.cu
  kernels/cuda/norm/norm.cu kernels/cuda/qgemm/qgemm.cu kernels/cuda/qconv/qconv.cu kernels/cuda/recurrence/recurrence.cu)
target_include_directories(onnxopt_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_options(onnxopt_cuda PRIVATE -O3 -fmad=false "SHELL:-Werror all-warnings" "SHELL:-Werror default-stream-launch"
  -Xcompiler=-Wall,-Wextra,-Werror)
if(ONNXOPT_CUDA STREQUAL "on")  # then a kernel that spills registers is an error
  target_compile_options(onnxopt_cuda PRIVATE "SHELL:-Xptxas --warn-on-spills,--warning-as-error")
endif()
set_target_properties(onnxopt_cuda PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static)
target_link_libraries(onnxopt_cuda PUBLIC onnxopt_cuda_host)
