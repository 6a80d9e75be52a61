// Arrays in files: .npy (see numpy.lib.format), and the plain bytes of one array.
#pragma once

#include <tvm/ffi/dtype.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Ends the program with a message and an exit code; those of the command line `tvm-sparse`.
enum Exit { kOurFault = 1, kUsage = 2, kInput = 4, kLibrary = 7, kOutput = 8 };

struct Failure : std::runtime_error {
  Failure(Exit exit_code, const std::string& message) : std::runtime_error(message), code(exit_code) {}
  Exit code;
};

struct TensorSpec {
  std::string name, dtype;
  std::vector<int64_t> shape;
  size_t count() const {
    size_t product = 1;
    for (int64_t size : shape) product *= static_cast<size_t>(size);
    return product;
  }
  size_t bytes() const { return count() * ((tvm::ffi::StringToDLDataType(dtype).bits + 7) / 8); }
  TensorSpec resized(int64_t n) const {  // with another leading dimension
    TensorSpec changed = *this;
    changed.shape[0] = n;
    return changed;
  }
  std::string text() const {
    std::ostringstream out;
    out << dtype << " (";
    for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
    out << ")";
    return out.str();
  }
};

// What a file holds. Plain bytes have no descr and no shape.
struct FileArray {
  std::string path, descr, data;
  std::vector<int64_t> shape;
};

inline std::string read_file(const std::string& path, Exit code) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw Failure(code, path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string npy_descr(const std::string& dtype) {  // "float32" -> "<f4"
  const size_t bits = tvm::ffi::StringToDLDataType(dtype).bits;
  const char kind = dtype == "bool" ? 'b' : dtype == "bfloat16" ? 'V' : dtype[0];
  return (bits > 8 && kind != 'V' ? "<" : "|") + std::string(1, kind) + std::to_string(std::max<size_t>(1, bits / 8));
}

inline FileArray read_array(const std::string& path) {
  const std::string file = read_file(path, kInput);
  if (file.rfind("\x93NUMPY", 0) != 0) return {path, "", file, {}};
  const size_t start = file.size() > 6 && file[6] > 1 ? 12 : 10;  // format 1 has two bytes for the header's length
  size_t length = 0;
  for (size_t i = 8; i < start && i < file.size(); ++i) {
    length |= static_cast<size_t>(static_cast<unsigned char>(file[i])) << (8 * (i - 8));
  }
  if (file.size() < start + length) throw Failure(kInput, path + ": is cut short");
  const std::string header = file.substr(start, length);
  auto after = [&](const std::string& key) {
    const size_t at = header.find("'" + key + "':");
    if (at == std::string::npos) throw Failure(kInput, path + ": its .npy header names no " + key);
    return header.substr(header.find_first_not_of(' ', at + key.size() + 3));
  };
  FileArray array{path, after("descr").substr(1), file.substr(start + length), {}};
  array.descr = array.descr.substr(0, array.descr.find('\''));
  if (after("fortran_order").rfind("True", 0) == 0) throw Failure(kInput, path + ": is in column-major order");
  std::istringstream sizes(after("shape").substr(1));
  for (int64_t size; sizes >> size; sizes.ignore(1)) array.shape.push_back(size);
  return array;
}

inline void check(const FileArray& array, const TensorSpec& spec) {
  const TensorSpec given{spec.name, array.descr, array.shape};
  if (!array.descr.empty() && (array.descr != npy_descr(spec.dtype) || array.shape != spec.shape)) {
    throw Failure(kInput, array.path + ": holds " + given.text() + ", input '" + spec.name + "' is " + spec.text());
  }
  if (array.data.size() != spec.bytes()) {
    throw Failure(kInput, array.path + ": has " + std::to_string(array.data.size()) + " bytes of data, input '" +
                              spec.name + "', " + spec.text() + ", has " + std::to_string(spec.bytes()));
  }
}

inline void write_npy(const std::string& path, const TensorSpec& spec, const std::string& data) {
  std::ostringstream header;
  header << "{'descr': '" << npy_descr(spec.dtype) << "', 'fortran_order': False, 'shape': (";
  for (int64_t size : spec.shape) header << size << ", ";
  header << "), }";
  std::string text = header.str();
  text.append(63 - (10 + text.size()) % 64, ' ').push_back('\n');  // so that the data starts at a multiple of 64
  std::ofstream file(path, std::ios::binary);
  file << std::string("\x93NUMPY\x01\x00", 8) << static_cast<char>(text.size() & 0xff)
       << static_cast<char>(text.size() >> 8) << text << data;
  file.close();
  if (!file) throw Failure(kOutput, path + ": cannot be written");
}
