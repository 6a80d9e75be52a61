// Runs a library that tvm-sparse exported, with TVM's runtime alone: no Python, no compiler. See README.md beside it.
//
//     run_network NET.so [--device cpu|cuda[:N]] [--threads N] [--repeats N] [--output Y.npy]... INPUT...
//
// An INPUT is an .npy file, or any other file with the plain bytes of one input, in row-major order.

#include <dlfcn.h>
#include <sched.h>
#include <sys/utsname.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

// Ends the program with a message and an exit code; those of the command line `tvm-sparse`.
enum Exit { kOurFault = 1, kUsage = 2, kInput = 4, kLibrary = 7, kOutput = 8 };

struct Failure : std::runtime_error {
  Failure(Exit exit_code, const std::string& message) : std::runtime_error(message), code(exit_code) {}
  Exit code;
};

constexpr const char* kUsageText =
    "usage: run_network NET.so [--device cpu|cuda[:N]] [--threads N] [--repeats N] [--output Y.npy]... INPUT...";

struct Options {
  std::string library, device;
  int threads = 0, repeats = 10;  // threads 0: as many as this process has CPUs
  std::vector<std::string> inputs, outputs;
};

struct TensorSpec {
  std::string name, dtype;
  std::vector<int64_t> shape;
  size_t count() const {
    size_t product = 1;
    for (int64_t size : shape) product *= static_cast<size_t>(size);
    return product;
  }
  size_t bytes() const { return ffi::GetDataSize(count(), ffi::StringToDLDataType(dtype)); }
  std::string text() const {
    std::ostringstream out;
    out << dtype << " (";
    for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
    out << ")";
    return out.str();
  }
};

// What the library says about itself: see tvm_sparse/deploy/metadata.py, which writes it.
struct Metadata {
  std::string model, target, triple, mcpu;
  std::vector<std::string> cpu_features, archs;
  std::vector<TensorSpec> inputs, outputs;
};

// ---- files ---------------------------------------------------------------------------------------------------------

std::string read_file(const std::string& path, Exit code) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw Failure(code, path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string npy_descr(const std::string& dtype) {  // "float32" -> "<f4"
  const size_t bits = ffi::StringToDLDataType(dtype).bits;
  const char kind = dtype == "bool" ? 'b' : dtype == "bfloat16" ? 'V' : dtype[0];
  return (bits > 8 && kind != 'V' ? "<" : "|") + std::string(1, kind) + std::to_string(std::max<size_t>(1, bits / 8));
}

// The data of an .npy file, checked against the spec; see numpy.lib.format for the header.
std::string npy_data(const std::string& path, const std::string& file, const TensorSpec& spec) {
  const bool long_length = file.size() > 6 && file[6] > 1;  // format 1 has two bytes for the header's length
  const size_t start = long_length ? 12 : 10;
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
  std::string descr = after("descr").substr(1);
  descr = descr.substr(0, descr.find('\''));
  if (after("fortran_order").rfind("True", 0) == 0) throw Failure(kInput, path + ": is in column-major order");
  std::istringstream sizes(after("shape").substr(1));
  TensorSpec given{spec.name, descr, {}};
  for (int64_t size; sizes >> size; sizes.ignore(1)) given.shape.push_back(size);
  if (descr != npy_descr(spec.dtype) || given.shape != spec.shape) {
    throw Failure(kInput, path + ": holds " + given.text() + ", input '" + spec.name + "' is " + spec.text());
  }
  return file.substr(start + length);
}

std::string read_input(const std::string& path, const TensorSpec& spec) {
  std::string data = read_file(path, kInput);
  if (data.rfind("\x93NUMPY", 0) == 0) data = npy_data(path, data, spec);
  if (data.size() != spec.bytes()) {
    throw Failure(kInput, path + ": has " + std::to_string(data.size()) + " bytes of data, input '" + spec.name +
                              "', " + spec.text() + ", has " + std::to_string(spec.bytes()));
  }
  return data;
}

void write_npy(const std::string& path, const TensorSpec& spec, const std::string& data) {
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

// ---- the library and what it needs ---------------------------------------------------------------------------------

std::vector<TensorSpec> specs_of(const ffi::json::Array& list) {
  std::vector<TensorSpec> specs;
  for (const ffi::Any& item : list) {
    auto object = item.cast<ffi::json::Object>();
    TensorSpec spec{object["name"].cast<std::string>(), object["dtype"].cast<std::string>(), {}};
    for (const ffi::Any& size : object["shape"].cast<ffi::json::Array>()) spec.shape.push_back(size.cast<int64_t>());
    specs.push_back(spec);
  }
  return specs;
}

// shared library | metadata JSON | footer: version, both lengths, sha256, magic; see tvm_sparse/deploy/trailer.py.
// The lengths show a file that was cut short. The checksum is left to `tvm_sparse.load`.
Metadata read_metadata(const std::string& path) {
  constexpr size_t kFooter = 64;
  const std::string file = read_file(path, kLibrary);
  if (file.size() < kFooter || file.compare(file.size() - 8, 8, std::string("TVMSPRS\0", 8)) != 0) {
    throw Failure(kLibrary, path + ": is no library of tvm-sparse, or was cut short");
  }
  uint64_t footer[3];
  std::memcpy(footer, file.data() + file.size() - kFooter, sizeof footer);
  const auto [version, library_bytes, metadata_bytes] = footer;
  if (version != 1) throw Failure(kLibrary, path + ": has format " + std::to_string(version) + ", this reads 1");
  if (library_bytes + metadata_bytes + kFooter != file.size()) throw Failure(kLibrary, path + ": is damaged");
  auto values = ffi::json::Parse(file.substr(library_bytes, metadata_bytes)).cast<ffi::json::Object>();
  auto texts = [&](const char* key) {
    std::vector<std::string> list;
    for (const ffi::Any& item : values[key].cast<ffi::json::Array>()) list.push_back(item.cast<std::string>());
    return list;
  };
  auto text = [&](const char* key) { return values[key].cast<std::string>(); };
  return {text("model"),         text("target"), text("triple"),
          text("mcpu"),          texts("cpu_features"), texts("archs"),
          specs_of(values["inputs"].cast<ffi::json::Array>()),
          specs_of(values["outputs"].cast<ffi::json::Array>())};
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

void check_cpu(const std::string& path, const Metadata& metadata) {
  utsname machine;
  uname(&machine);
  const std::string family = metadata.triple.substr(0, metadata.triple.find('-'));
  if (!family.empty() && family != machine.machine) {
    throw Failure(kLibrary, path + ": was compiled for " + family + " CPUs, this one is " + machine.machine);
  }
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
    std::istringstream words(line);
    const std::set<std::string> here{std::istream_iterator<std::string>(words), {}};
    std::vector<std::string> missing;
    for (const std::string& name : metadata.cpu_features) {
      if (!here.count(name)) missing.push_back(name);
    }
    if (missing.empty()) return;
    throw Failure(kLibrary, path + ": was compiled for " + metadata.mcpu + ", this CPU lacks " + joined(missing));
  }
}

void check_gpu(const std::string& path, const Metadata& metadata, DLDevice device) {
  constexpr int kExist = 0, kComputeVersion = 4;  // of tvm/runtime/device_api.h
  auto attribute = ffi::Function::GetGlobalRequired("runtime.GetDeviceAttr");
  const int kind = device.device_type;
  if (attribute(kind, device.device_id, kExist).cast<int64_t>() == 0) {
    throw Failure(kInput, path + ": there is no GPU " + std::to_string(device.device_id) + " here");
  }
  const auto here = attribute(kind, device.device_id, kComputeVersion).cast<std::string>();  // "9.0"
  const std::string major = here.substr(0, here.find('.')), minor = here.substr(here.find('.') + 1);
  for (const std::string& arch : metadata.archs) {
    if (arch == "sm_" + major + minor + "a") return;
    if (arch.back() != 'a' && arch.substr(3, arch.size() - 4) == major && arch.back() - '0' <= std::stoi(minor)) return;
  }
  throw Failure(kLibrary, path + ": holds code for " + joined(metadata.archs) + ", this GPU is sm_" + major + minor);
}

void load_runtime_part(const std::string& name, bool needed) {
  if (!dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL) && needed) {
    throw Failure(kLibrary, "TVM's runtime cannot be loaded: " + std::string(dlerror()));
  }
}

// TVM would take half of the CPUs and pin this thread to the first one.
int use_threads(int wanted) {
  cpu_set_t set;
  sched_getaffinity(0, sizeof set, &set);
  ffi::Array<ffi::String> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(std::to_string(cpu));
  }
  const int count = static_cast<int>(cpus.size());
  if (wanted > count) throw Failure(kInput, "this process may use 1 to " + std::to_string(count) + " threads");
  constexpr int kShareAllCpus = -3;  // ThreadGroup::kSpecifyThreadShareAllCore
  ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kShareAllCpus, wanted ? wanted : count, cpus);
  return wanted ? wanted : count;
}

// ---- running -------------------------------------------------------------------------------------------------------

DLDevice chosen_device(const Options& options, const Metadata& metadata) {
  const std::string kind = metadata.target == "cuda" ? "cuda" : "cpu";
  const std::string asked = options.device.empty() ? kind : options.device;
  const std::string index = asked.size() > kind.size() ? asked.substr(kind.size() + 1) : "0";
  const bool formed = asked == kind || (kind == "cuda" && asked.rfind("cuda:", 0) == 0 && !index.empty() &&
                                        index.size() < 4 && std::all_of(index.begin(), index.end(), isdigit));
  if (!formed) throw Failure(kInput, options.library + ": was compiled for " + kind + ", not for " + asked);
  return {kind == "cuda" ? kDLCUDA : kDLCPU, std::stoi(index)};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

void describe(const TensorSpec& spec, const std::string& data) {
  std::printf("output %s: %s", spec.name.c_str(), spec.text().c_str());
  if (spec.dtype == "float32" && spec.count() > 0) {
    std::vector<float> values(spec.count());
    std::memcpy(values.data(), data.data(), data.size());
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    std::printf(", from %g to %g, the largest at %td", *low, *high, high - values.begin());
  }
  std::printf("\n");
}

void run(const Options& options) {
  const Metadata metadata = read_metadata(options.library);
  const DLDevice device = chosen_device(options, metadata);
  const bool cuda = device.device_type == kDLCUDA;
  std::printf("%s: '%s' for %s\n", options.library.c_str(), metadata.model.c_str(),
              cuda ? joined(metadata.archs).c_str() : (metadata.triple + " " + metadata.mcpu).c_str());
  if (options.inputs.size() != metadata.inputs.size() || options.outputs.size() > metadata.outputs.size()) {
    std::vector<std::string> wanted;
    for (const TensorSpec& spec : metadata.inputs) wanted.push_back(spec.name + " " + spec.text());
    throw Failure(kInput, "the network takes " + joined(wanted) + " and gives " +
                              std::to_string(metadata.outputs.size()) + " outputs: name a file for each input");
  }
  check_cpu(options.library, metadata);  // a CUDA library has host code too
  load_runtime_part("libtvm_runtime_extra.so", false);  // sorting and the like, which few networks need
  if (cuda) {
    load_runtime_part("libtvm_runtime_cuda.so", true);
    check_gpu(options.library, metadata, device);
  }
  const int threads = use_threads(options.threads);

  // An absolute path: a bare name would be looked for where the system keeps its libraries.
  ffi::Module library = ffi::Module::LoadFromFile(std::filesystem::absolute(options.library).string());
  auto machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();  // owns what `main` uses
  constexpr int kPooled = 2;
  auto initialize = machine->GetFunction("vm_initialization").value();
  const int kind = device.device_type, cpu = kDLCPU;
  cuda ? initialize(kind, device.device_id, kPooled, cpu, 0, kPooled) : initialize(kind, device.device_id, kPooled);
  ffi::Function main = machine->GetFunction("main").value();

  auto allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  auto copy_in = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
  auto copy_out = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
  auto synchronize = ffi::Function::GetGlobalRequired("runtime.Device_StreamSync");
  std::vector<ffi::Tensor> inputs;
  std::vector<ffi::AnyView> arguments;
  for (size_t i = 0; i < metadata.inputs.size(); ++i) {
    const TensorSpec& spec = metadata.inputs[i];
    std::string data = read_input(options.inputs[i], spec);
    const DLDataType dtype = ffi::StringToDLDataType(spec.dtype);
    inputs.push_back(allocate(ffi::Shape(spec.shape), dtype, device, nullptr).cast<ffi::Tensor>());
    copy_in(inputs.back(), static_cast<void*>(data.data()), data.size());
  }
  for (const ffi::Tensor& input : inputs) arguments.emplace_back(input);

  ffi::Any result;
  std::vector<double> times_us;
  for (int call = 0; call < 1 + options.repeats; ++call) {  // the first one is not counted
    const auto start = std::chrono::steady_clock::now();
    main.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    synchronize(device, 0);
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
    if (call > 0) times_us.push_back(taken.count());
  }

  ffi::Array<ffi::Tensor> outputs;
  if (auto single = result.as<ffi::Tensor>()) outputs.push_back(*single);
  else outputs = result.cast<ffi::Array<ffi::Tensor>>();
  for (size_t i = 0; i < metadata.outputs.size(); ++i) {
    const TensorSpec& spec = metadata.outputs[i];
    std::string data(spec.bytes(), '\0');
    copy_out(outputs[static_cast<int64_t>(i)], static_cast<void*>(data.data()), data.size());
    describe(spec, data);
    if (i < options.outputs.size()) write_npy(options.outputs[i], spec, data);
  }
  if (!times_us.empty()) {
    std::printf("%d calls on %s: median %.1f us, least %.1f us\n", options.repeats,
                cuda ? "the GPU" : (std::to_string(threads) + " threads").c_str(), median(times_us),
                *std::min_element(times_us.begin(), times_us.end()));
  }
}

int number(const std::string& name, const std::string& text, int least) {
  const bool digits = !text.empty() && text.size() < 8 && std::all_of(text.begin(), text.end(), isdigit);
  if (!digits || std::stoi(text) < least) throw Failure(kUsage, name + " needs a number: " + kUsageText);
  return std::stoi(text);
}

Options parse(int count, char** words) {
  Options options;
  std::vector<std::string> plain;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word.rfind("--", 0) != 0) {
      plain.push_back(word);
      continue;
    }
    if (++i == count) throw Failure(kUsage, word + " needs a value: " + kUsageText);
    if (word == "--device") options.device = words[i];
    else if (word == "--threads") options.threads = number(word, words[i], 1);
    else if (word == "--repeats") options.repeats = number(word, words[i], 0);
    else if (word == "--output") options.outputs.push_back(words[i]);
    else throw Failure(kUsage, "unknown option " + word + ": " + kUsageText);
  }
  if (plain.empty()) throw Failure(kUsage, kUsageText);
  options.library = plain[0];
  options.inputs.assign(plain.begin() + 1, plain.end());
  return options;
}

int main(int count, char** words) {
  try {
    run(parse(count, words));
    return 0;
  } catch (const Failure& failure) {
    std::cerr << "error: " << failure.what() << std::endl;
    return failure.code;
  } catch (const ffi::Error& error) {  // of TVM: its what() adds a stack trace
    std::cerr << "error: " << error.kind() << ": " << error.message() << std::endl;
    return kOurFault;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return kOurFault;
  }
}
