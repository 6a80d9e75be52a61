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
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "npy.h"

namespace ffi = tvm::ffi;

constexpr const char* kUsageText =
    "usage: run_network NET.so [--device cpu|cuda[:N]] [--threads N] [--repeats N] [--output Y.npy]... INPUT...";

struct Options {
  std::string library, device;
  int threads = 0, repeats = 10;  // threads 0: as many as this process has CPUs
  std::vector<std::string> inputs, outputs;
};

// What the library says about itself: see tvm_sparse/deploy/metadata.py, which writes it.
struct Metadata {
  std::string model, target, triple, mcpu;
  std::vector<std::string> cpu_features, archs;
  std::vector<TensorSpec> inputs, outputs;  // with the largest batch, where it serves several
  std::vector<int64_t> buckets;             // the batch sizes it was compiled for, if it serves several
  std::set<std::string> batched;            // its inputs whose leading dimension is the batch
};

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
  const auto format = values["format_version"].cast<int64_t>();
  if (format != 2) throw Failure(kLibrary, path + ": metadata of format " + std::to_string(format) + ", this reads 2");
  auto texts = [&](const char* key) {
    std::vector<std::string> list;
    for (const ffi::Any& item : values[key].cast<ffi::json::Array>()) list.push_back(item.cast<std::string>());
    return list;
  };
  auto text = [&](const char* key) { return values[key].cast<std::string>(); };
  Metadata metadata{text("model"), text("target"), text("triple"), text("mcpu"), texts("cpu_features"), texts("archs"),
                    specs_of(values["inputs"].cast<ffi::json::Array>()),
                    specs_of(values["outputs"].cast<ffi::json::Array>()), {}, {}};
  if (auto batch = values["batch"].as<ffi::json::Object>()) {
    for (const ffi::Any& n : (*batch)["buckets"].cast<ffi::json::Array>()) {
      metadata.buckets.push_back(n.cast<int64_t>());
    }
    for (const ffi::Any& name : (*batch)["inputs"].cast<ffi::json::Array>()) {
      metadata.batched.insert(name.cast<std::string>());
    }
  }
  return metadata;
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

// How many images the inputs hold: the leading size of the first one that has a batch; 0 where the batch is fixed.
int64_t images_in(const std::vector<FileArray>& arrays, const Metadata& metadata) {
  for (size_t i = 0; i < arrays.size(); ++i) {
    const TensorSpec& spec = metadata.inputs[i];
    if (!metadata.batched.count(spec.name)) continue;
    const bool plain = arrays[i].descr.empty() || arrays[i].shape.empty();
    const size_t images = arrays[i].data.size() / spec.resized(1).bytes();
    const int64_t n = plain ? static_cast<int64_t>(images) : arrays[i].shape[0];
    if (n >= 1 && n <= metadata.buckets.back()) return n;
    throw Failure(kInput, arrays[i].path + ": has batch " + std::to_string(n) + ", the library serves 1 to " +
                              std::to_string(metadata.buckets.back()));
  }
  return 0;
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

  // Of several batch sizes that which the images fit into; inputs are padded with zeros, outputs cut.
  std::vector<FileArray> arrays;
  for (const std::string& path : options.inputs) arrays.push_back(read_array(path));
  const int64_t n = images_in(arrays, metadata);
  const int64_t bucket = n ? *std::lower_bound(metadata.buckets.begin(), metadata.buckets.end(), n) : 0;
  const bool largest = n == 0 || bucket == metadata.buckets.back();
  ffi::Function main = machine->GetFunction(largest ? "main" : "main_" + std::to_string(bucket)).value();

  auto make = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  auto copy_in = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
  auto copy_out = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
  auto synchronize = ffi::Function::GetGlobalRequired("runtime.Device_StreamSync");
  auto allocate = [&](const TensorSpec& spec) {
    return make(ffi::Shape(spec.shape), ffi::StringToDLDataType(spec.dtype), device, nullptr).cast<ffi::Tensor>();
  };
  std::vector<ffi::Tensor> tensors;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const TensorSpec& spec = metadata.inputs[i];
    const bool batched = metadata.batched.count(spec.name) > 0;
    check(arrays[i], batched ? spec.resized(n) : spec);
    const TensorSpec whole = batched ? spec.resized(bucket) : spec;
    arrays[i].data.resize(whole.bytes(), '\0');
    tensors.push_back(allocate(whole));
    copy_in(tensors.back(), static_cast<void*>(arrays[i].data.data()), arrays[i].data.size());
  }
  // On a GPU the outputs are arguments too, behind the inputs: it writes into the caller's memory.
  std::vector<TensorSpec> wholes;
  for (const TensorSpec& spec : metadata.outputs) wholes.push_back(n ? spec.resized(bucket) : spec);
  for (size_t i = 0; cuda && i < wholes.size(); ++i) tensors.push_back(allocate(wholes[i]));
  std::vector<ffi::AnyView> arguments;
  for (const ffi::Tensor& tensor : tensors) arguments.emplace_back(tensor);

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
  if (cuda) outputs = ffi::Array<ffi::Tensor>(tensors.end() - static_cast<int64_t>(wholes.size()), tensors.end());
  else if (auto single = result.as<ffi::Tensor>()) outputs.push_back(*single);
  else outputs = result.cast<ffi::Array<ffi::Tensor>>();
  for (size_t i = 0; i < metadata.outputs.size(); ++i) {
    const TensorSpec spec = n ? metadata.outputs[i].resized(n) : metadata.outputs[i];
    std::string data(wholes[i].bytes(), '\0');
    copy_out(outputs[static_cast<int64_t>(i)], static_cast<void*>(data.data()), data.size());
    data.resize(spec.bytes());
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
