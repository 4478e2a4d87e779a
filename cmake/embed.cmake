# Writes headers as C++ strings: cmake -DROOT=... -DHEADERS=a.h,b.h -DTARGET=... -P embed.cmake
string(REPLACE "," ";" headers "${HEADERS}")
set(text "")
foreach(header ${headers})
  file(READ ${ROOT}/${header} content)
  string(APPEND text "{\"${header}\", R\"onnxopt(${content})onnxopt\"},\n")
endforeach()
file(WRITE ${TARGET} "${text}")
