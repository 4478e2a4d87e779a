# The CPU kernels: in each family one file per instruction set, with its own flags.
function(onnxopt_own_code target)
  # GCC 12 sees overlapping copies in its own std::string (GCC bug 105651).
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -Wno-restrict)
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
endfunction()

add_library(onnxopt_kernels STATIC kernels/cpu/scratch.cc)
onnxopt_own_code(onnxopt_kernels)
# Contraction stays off: where an operation is fused is written in the code, so that variants agree. -O3 also without a build type.
target_compile_options(onnxopt_kernels PRIVATE -O3 -ffp-contract=off -fno-math-errno)

# onnxopt_kernel_family(NAME SOURCE...): scalar.cc and, on x86-64, avx2.cc and avx512.cc or avx512vnni.cc of kernels/cpu/NAME, and further
# sources.
function(onnxopt_kernel_family name)
  set(family kernels/cpu/${name})
  list(TRANSFORM ARGN PREPEND ${family}/ OUTPUT_VARIABLE sources)
  list(APPEND sources ${family}/scalar.cc)
  # Its vectors are larger than the baseline's registers; all that is told of how they are passed is inlined.
  set_source_files_properties(${family}/scalar.cc PROPERTIES COMPILE_OPTIONS "-Wno-psabi")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND sources ${family}/avx2.cc)
    set_source_files_properties(${family}/avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
    # GCC 12 warns of its own header's deliberately undefined registers.
    set(avx512 "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mf16c;-Wno-uninitialized;-Wno-maybe-uninitialized")
    set_source_files_properties(${family}/avx512.cc PROPERTIES COMPILE_OPTIONS "${avx512}")
    set_source_files_properties(${family}/avx512vnni.cc PROPERTIES COMPILE_OPTIONS "${avx512};-mavx512vnni")
    file(GLOB wide RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS ${family}/avx512*.cc)
    list(APPEND sources ${wide})
  endif()
  target_sources(onnxopt_kernels PRIVATE ${sources})
endfunction()

onnxopt_kernel_family(elementwise program.cc plan.cc epilogue.cc)
onnxopt_kernel_family(gemm gemm.cc)
onnxopt_kernel_family(qgemm qgemm.cc)
onnxopt_kernel_family(attention attention.cc)
onnxopt_kernel_family(qattention qattention.cc)
onnxopt_kernel_family(norm norm.cc)
onnxopt_kernel_family(conv plan.cc)
onnxopt_kernel_family(qconv qconv.cc)
onnxopt_kernel_family(recurrence recurrence.cc blocks.cc convolution.cc gated.cc loop.cc loop_plan.cc statement.cc tensors.cc)

if(ONNXOPT_SANITIZE)
  # Vectors on the stack are out of scope millions of times: watching that, and naming every variable, takes minutes a file, as does
  # optimizing what is watched.
  set(watched -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-sanitize-address-use-after-scope -fno-omit-frame-pointer)
  add_compile_options(${watched})
  add_link_options(-fsanitize=address,undefined)
  target_compile_options(onnxopt_kernels PRIVATE -O1 ${watched})
endif()
