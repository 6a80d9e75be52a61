// Every CUDA thread is a fiber; a barrier hands over to the next one.
#include "device.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <limits>
#include <vector>

dim threadIdx, blockIdx;
float* shared_memory;

namespace {

struct copy { void* to; const void* from; int bytes, read; };

size_t shared_words;
std::vector<ucontext_t> fibers;
std::vector<std::vector<char>> stacks;
std::vector<char> finished;
ucontext_t scheduler;
int running;
void (*launched)();
std::vector<float> exchanged;
std::vector<operands> shown;
std::vector<std::deque<std::vector<copy>>> committed;
std::vector<std::vector<copy>> pending;

float exchange(float value, int from) {
  exchanged.resize(fibers.size());
  exchanged[running] = value; __syncthreads();
  float other = exchanged[from < (int)fibers.size() ? from : running]; __syncthreads();
  return other;
}

void body() { launched(); finished[running] = 1; }

}  // namespace

void allocate_shared(size_t bytes) {
  shared_words = (bytes + 15) / 16 * 4;
  shared_memory = (float*)aligned_alloc(16, std::max<size_t>(shared_words, 4) * 4);
}

void __syncthreads() { swapcontext(&fibers[running], &scheduler); }

float __shfl_down_sync(unsigned, float value, int by, int width) {
  return exchange(value, running % width + by < width ? running + by : running);
}

float __shfl_sync(unsigned, float value, int lane, int width) {
  return exchange(value, running / width * width + lane % width);
}

const operands* show_operands(operands own) {
  shown.resize(fibers.size());
  shown[running] = own; __syncthreads();
  return &shown[running / 32 * 32];
}

int lane_of_warp() { return running % 32; }

void copy_async(void* to, const void* from, int bytes, int read) {
  if ((size_t)to % bytes || (size_t)from % bytes) { fprintf(stderr, "a copy that is not aligned\n"); exit(5); }
  pending[running].push_back({to, from, bytes, read});
}

void commit_copies() { committed[running].push_back(pending[running]); pending[running].clear(); }

void wait_for_copies(size_t left) {
  for (auto& groups = committed[running]; groups.size() > left; groups.pop_front())
    for (copy& each : groups.front()) {
      memset(each.to, 0, each.bytes);
      memcpy(each.to, each.from, each.read);
    }
}

void launch(dim grid, dim block, void (*kernel)()) {
  int threads = block.x * block.y * block.z;
  launched = kernel;
  committed.assign(threads, {}); pending.assign(threads, {});
  fibers.resize(threads); stacks.assign(threads, std::vector<char>(1 << 16));
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
    finished.assign(threads, 0);
    std::fill(shared_memory, shared_memory + shared_words, std::numeric_limits<float>::quiet_NaN());
    for (int t = 0; t < threads; ++t) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t].data(); fibers[t].uc_stack.ss_size = stacks[t].size();
      fibers[t].uc_link = &scheduler;
      makecontext(&fibers[t], body, 0);
    }
    for (int left = threads; left;) {
      int before = left;
      for (int t = 0; t < threads; ++t) {
        threadIdx.x = t % block.x; threadIdx.y = t / block.x % block.y; threadIdx.z = t / block.x / block.y;
        running = t;
        swapcontext(&scheduler, &fibers[t]);
        left -= finished[t];
      }
      // All threads meet at a barrier, or all of them end: a part that does is a hang on a GPU.
      if (left != before && left) { fprintf(stderr, "a barrier that not all threads reach\n"); exit(3); }
    }
  }
}

void* load(const char* path, size_t bytes) {
  char* data = (char*)malloc(bytes);
  FILE* file = fopen(path, "rb");
  if (!file || fread(data, 1, bytes, file) != bytes) exit(4);
  fclose(file);
  return data;
}

void store(const char* path, const void* data, size_t bytes) {
  FILE* file = fopen(path, "wb");
  if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file)) exit(4);
}

float* poisoned(size_t count) {
  float* data = (float*)malloc(count * sizeof(float));
  std::fill(data, data + count, std::numeric_limits<float>::quiet_NaN());
  return data;
}
