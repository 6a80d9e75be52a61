// What generated CUDA C++ needs of CUDA, for g++. Light to include, since every kernel is compiled with it: what is long
// lies in device.cc, compiled once.
#pragma once
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstring>
template <class T> T max(T a, T b) { return a < b ? b : a; }
template <class T> T min(T a, T b) { return b < a ? b : a; }
typedef unsigned char uchar;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static int2 make_int2(int x, int y) { return {x, y}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
// 16-bit elements: bits that turn into float32 and back, rounded to nearest even, after every operation.
typedef unsigned short ushort;
template <class Bits> struct element {
  ushort bits = 0;
  element() = default;
  element(float value) : bits(Bits::from(value)) {}
  operator float() const { return Bits::to(bits); }
};
struct half_bits {
  static ushort from(float value) { _Float16 half = value; ushort bits; memcpy(&bits, &half, 2); return bits; }
  static float to(ushort bits) { _Float16 half; memcpy(&half, &bits, 2); return half; }
};
struct bfloat_bits {
  static ushort from(float value) {
    unsigned bits; memcpy(&bits, &value, 4);
    return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  static float to(ushort bits) { float value; unsigned wide = bits << 16; memcpy(&value, &wide, 4); return value; }
};
typedef element<half_bits> half, __half; typedef element<bfloat_bits> nv_bfloat16, __nv_bfloat16;
template <class T> struct alignas(4) two { T x, y; };
template <class T> struct alignas(8) four { T x, y, z, w; };
typedef two<half> half2; typedef four<half> half4;
typedef two<nv_bfloat16> nv_bfloat162; typedef four<nv_bfloat16> nv_bfloat164;
static half2 make_half2(half x, half y) { return {x, y}; }
static half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
static nv_bfloat162 make_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static nv_bfloat164 make_nv_bfloat164(nv_bfloat16 x, nv_bfloat16 y, nv_bfloat16 z, nv_bfloat16 w) {
  return {x, y, z, w};
}
static half __float2half_rn(float value) { return value; }
static nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
static half2 __half2half2(half value) { return {value, value}; }
static half fused(half a, half b, half c) { return (_Float16)((double)(float)a * (float)b + (float)c); }
static nv_bfloat16 fused(nv_bfloat16 a, nv_bfloat16 b, nv_bfloat16 c) {
  return (float)((double)(float)a * (float)b + (float)c);
}
template <class T> two<T> __hfma2(two<T> a, two<T> b, two<T> c) { return {fused(a.x, b.x, c.x), fused(a.y, b.y, c.y)}; }
template <class T> two<T> __hmul2(two<T> a, two<T> b) { return {(float)a.x * (float)b.x, (float)a.y * (float)b.y}; }
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <class T> unsigned packed(T x, T y) { return x.bits | (unsigned)y.bits << 16; }
static unsigned __pack_half2(half x, half y) { return packed(x, y); }
static unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return packed(x, y); }
struct dim { int x = 0, y = 0, z = 0; };
extern dim threadIdx, blockIdx;
extern float* shared_memory;  // on the next 16 bytes, as on a GPU
void allocate_shared(size_t bytes);
void __syncthreads();
// Shuffles of a warp that all threads of the block make together.
static unsigned __activemask() { return ~0u; }
float __shfl_down_sync(unsigned, float value, int by, int width);
float __shfl_sync(unsigned, float value, int lane, int width);
// Asynchronous copies, made as late as the kernel's waits allow.
void copy_async(void* to, const void* from, int bytes, int read);
void commit_copies();
void wait_for_copies(size_t left);
template <class T> T* tvm_builtin_cuda_cvta_generic_to_shared(T* p) { return p; }
static void tvm_builtin_ptx_cp_async_ca_src_size_async_ca_shared_global_4(float* to, const float* from, unsigned size) {
  copy_async(to, from, 4, size);
}
// Kernels run one after the other.
static void wait_for_kernels_in_front() {}
static void begin_beside_kernels_in_front() {}
static void end_behind_kernels_in_front() {}
// What ptx_on_cpu.py makes of PTX.
static unsigned __cvta_generic_to_shared(const void* p) { return (const char*)p - (const char*)shared_memory; }
static size_t __cvta_generic_to_global(const void* p) { return (size_t)p; }
template <class T> T load_shared(unsigned at) { return *(const T*)((const char*)shared_memory + at); }
template <class T> T load_global(size_t at) { return *(const T*)at; }
static float float_of(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
static half2 pair_of(unsigned bits) { half2 pair; memcpy(&pair, &bits, 4); return pair; }
static unsigned bits_of(half2 pair) { unsigned bits; memcpy(&bits, &pair, 4); return bits; }
// An instruction of tensor cores that all threads of the block make together: what each lane of a warp shows the others.
struct operands { const void *weights, *first, *second; };
const operands* show_operands(operands own);
int lane_of_warp();
template <class T> void multiply_add(float* sums, const T* weights, const T* first, const T* second, int channel_tiles,
                                     int pixel_tiles, int apart) {
  const operands* lanes = show_operands({weights, first, second});
  int lane = lane_of_warp();
  for (int at = 0; at < channel_tiles * pixel_tiles * 4; ++at) {
    int m = at / 4 / pixel_tiles, n = at / 4 % pixel_tiles, half = at % 4 / 2, pixel = lane % 4 * 2 + at % 2;
    for (int column = 0; column < 16; ++column) {
      const T* a = (const T*)lanes[lane / 4 * 4 + column % 8 / 2].weights + m * 256 + column / 8 * 4 + half * 2;
      const operands& other = lanes[pixel * 4 + column % 8 / 2];
      const T* b = (const T*)(column / 8 ? other.second : other.first) + n * apart;
      sums[at] += (float)a[column % 2] * (float)b[column % 2];
    }
  }
  __syncthreads();
}
// What the program around the kernels calls. Arrays are never freed: the process ends.
void launch(dim grid, dim block, void (*kernel)());
void* load(const char* path, size_t bytes);
void store(const char* path, const void* data, size_t bytes);
float* poisoned(size_t count);
