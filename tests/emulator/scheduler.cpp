// Runs a kernel's threads as fibers, and stands in for the CUDA runtime behind the kernels' host code.
//
// Blocks run one after another, the threads of a block in an order that the caller chooses, each until it meets
// others (a barrier, a vote) or ends. What a GPU would answer with wrong numbers or a fault is an exception here:
// a deadlock, lanes that meet in different places, too much shared memory, a misaligned access, and so on.
// This file is compiled without sanitizers, so that its own data is invisible to them.

#include <cuda_runtime.h>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

// What a sanitizer's runtime offers, if there is one.
extern "C" {
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
void __asan_poison_memory_region(void const volatile*, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(void const volatile*, size_t) __attribute__((weak));
void emulator_switch(void** save, void* load);
}

// Saves the registers that a call must keep, and the stack; goes on where `load` was saved.
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

namespace emulator {

Place* self = nullptr;

namespace {

constexpr size_t kStack = 256 << 10;         // of a fiber
constexpr size_t kStaticLimit = 48 << 10;    // of static shared memory, and of all without cudaFuncSetAttribute
constexpr size_t kSharedLimit = 227 << 10;   // of all with it, on compute capability 9.0
constexpr size_t kGap = 64;                  // guard between two shared variables
constexpr size_t kStaticArea = 128 << 10;    // static variables and gaps
constexpr size_t kDynamicOffset = 128;       // so that nothing is aligned to more than 128 bytes by chance
constexpr unsigned char kGuard = 0xa5;
constexpr int kMaxVariables = 32;
constexpr size_t kKeptArenas = 64;  // under ThreadSanitizer, which would take memory used again for a race
constexpr uint64_t kUndefined = 0x7fc0dead7fc0deadull;  // what a shuffle gives from a lane that takes no part

enum class State { ready, at_block, at_warp, done };

struct Fiber {
  Place place;
  unsigned thread = 0;  // in the block
  State state = State::done;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* tsan = nullptr;
  // what it waits for, and what it is given
  Warp warp_op = Warp::sync;
  Block block_op = Block::sync;
  int line = 0, argument = 0, width = 32;
  unsigned mask = 0;
  uint64_t value = 0, result = 0;
  int warp_parity = 0, block_parity = 0;

  unsigned lane() const { return thread % 32; }
};

struct Variable {
  const void* key;
  char* at;
  size_t bytes;
};

enum Order : int { ascending, descending, shuffled };

struct Settings {
  int threads = ascending;
  int blocks = ascending;
  uint64_t seed = 0;
  int fill = 0xff;  // the byte that fresh shared memory is full of
} settings;

struct Counts {
  long long launches, blocks, threads, block_barriers, warp_barriers, votes, switches, most_shared;
} counts;

std::mt19937_64 random_bits;
std::vector<Fiber> fibers;
std::vector<Fiber*> running;  // of the block, by thread
char warp_sync[32][2], block_sync[2], start_sync, end_sync;  // addresses that ThreadSanitizer orders by
void* main_stack_pointer = nullptr;
void* main_tsan = nullptr;
Fiber* current = nullptr;
Body body;
void* body_arguments;
Variable variables[kMaxVariables];  // no container: sanitizers would see what it does
int variable_count = 0;
char* arena = nullptr;
size_t arena_size = 0, arena_used = 0, shared_bytes = 0, dynamic_bytes = 0;
std::vector<char*> kept_arenas;
std::map<const void*, int> allowed_shared;
std::string error;
int guards = 0;
void* const kStream = reinterpret_cast<void*>(0x5717ea);

void fail(const std::string& message) {
  if (error.empty()) error = message;
}

std::string where(const Fiber* fiber) {
  const Place& place = fiber->place;
  char text[200];
  snprintf(text, sizeof text, "block (%u, %u, %u) thread (%u, %u, %u) line %d", place.block.x, place.block.y,
           place.block.z, place.thread.x, place.thread.y, place.thread.z, fiber->line);
  return text;
}

void to_main() {
  ++counts.switches;
  Fiber* fiber = current;
  current = nullptr;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(main_tsan, 1);
  emulator_switch(&fiber->stack_pointer, main_stack_pointer);
}

void fiber_main() {
  for (;;) {
    if (__tsan_acquire) __tsan_acquire(&start_sync);
    body(body_arguments);
    if (__tsan_release) __tsan_release(&end_sync);
    current->state = State::done;
    to_main();
  }
}

void reset_stack(Fiber& fiber) {
  void** top = reinterpret_cast<void**>(fiber.stack + kStack);
  *--top = nullptr;  // a return address: the stack pointer is 8 modulo 16 on entry, as the ABI wants it
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

void make_fibers(size_t count) {
  while (fibers.size() < count) {
    fibers.emplace_back();
    Fiber& fiber = fibers.back();
    fiber.stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    reset_stack(fiber);
    if (__tsan_create_fiber) fiber.tsan = __tsan_create_fiber(0);
  }
}

void resume(Fiber* fiber) {
  current = fiber;
  self = &fiber->place;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber->tsan, 1);
  emulator_switch(&main_stack_pointer, fiber->stack_pointer);
}

// ---- Warps

// What a lane of `group` is given; `lanes` are the warp's fibers.
uint64_t warp_result(const Fiber* fiber, unsigned group, Fiber* const* lanes) {
  const int lane = static_cast<int>(fiber->lane()), width = fiber->width, first = lane & ~(width - 1);
  const auto from = [&](int source, bool inside) -> uint64_t {
    if (!inside) return fiber->value;
    return source < 32 && (group >> source & 1) ? lanes[source]->value : kUndefined;
  };
  switch (fiber->warp_op) {
    case Warp::sync: return 0;
    case Warp::shuffle: return from(first | (fiber->argument & (width - 1)), true);
    case Warp::up: return from(lane - fiber->argument, lane - fiber->argument >= first);
    case Warp::down: return from(lane + fiber->argument, lane + fiber->argument < first + width);
    case Warp::across: return from(lane ^ fiber->argument, (lane ^ fiber->argument) < first + width);
    default: break;
  }
  unsigned set = 0, matching = 0;
  uint64_t result = fiber->value;
  for (unsigned left = group; left; left &= left - 1) {
    const unsigned bit = left & -left;
    const uint64_t value = lanes[__builtin_ctz(left)]->value;
    if (value) set |= bit;
    if (value == fiber->value) matching |= bit;
    if (bit == (1u << lane)) continue;
    const int64_t a = static_cast<int64_t>(value), b = static_cast<int64_t>(result);
    if (fiber->warp_op == Warp::max) result = std::max(a, b);
    if (fiber->warp_op == Warp::min) result = std::min(a, b);
    if (fiber->warp_op == Warp::add) result = a + b;
    if (fiber->warp_op == Warp::either) result = value | result;
    if (fiber->warp_op == Warp::both) result = value & result;
  }
  if (fiber->warp_op == Warp::ballot) return set;
  if (fiber->warp_op == Warp::any) return set != 0;
  if (fiber->warp_op == Warp::all) return set == group;
  if (fiber->warp_op == Warp::match) return matching;
  return result;
}

// Releases the lanes of a warp that are all there; waits until no lane of the warp can run on.
void settle_warp(size_t warp) {
  const size_t first = warp * 32, count = std::min<size_t>(32, running.size() - first);
  Fiber* const* lanes = running.data() + first;
  unsigned waiting = 0;
  for (size_t lane = 0; lane < count; ++lane) {
    if (lanes[lane]->state == State::ready) return;
    if (lanes[lane]->state == State::at_warp) waiting |= 1u << lane;
  }
  const unsigned exists = count == 32 ? ~0u : (1u << count) - 1;
  unsigned released = 0;
  for (unsigned left = waiting; left;) {
    const Fiber* fiber = lanes[__builtin_ctz(left)];
    const unsigned mask = fiber->mask;
    if (mask & ~exists) return fail("a mask names a lane that does not exist: " + where(fiber));
    unsigned group = 0;
    bool complete = true;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      const Fiber* other = lanes[lane];
      if (other->state == State::done) continue;  // only threads that have not ended must take part
      if (other->state != State::at_warp) {
        complete = false;
        continue;
      }
      if (other->mask != mask || other->warp_op != fiber->warp_op || other->line != fiber->line)
        return fail("lanes of one warp meet in different places: " + where(fiber) + " and " + where(other));
      group |= 1u << lane;
    }
    left &= ~(group | 1u << fiber->lane());
    if (!complete) continue;
    for (unsigned rest = group; rest; rest &= rest - 1) {
      Fiber* member = lanes[__builtin_ctz(rest)];
      member->result = warp_result(member, group, lanes);
    }
    released |= group;
  }
  for (; released; released &= released - 1) lanes[__builtin_ctz(released)]->state = State::ready;
}

// ---- Blocks

void settle_block() {
  const Fiber* first = nullptr;
  bool ended = false;
  int holds = 0, count = 0;
  for (const Fiber* fiber : running) {
    if (fiber->state == State::ready || fiber->state == State::at_warp) return;
    if (fiber->state == State::done) {
      ended = true;
      continue;
    }
    if (first && (first->line != fiber->line || first->block_op != fiber->block_op))
      fail("threads meet in different __syncthreads: " + where(first) + " and " + where(fiber));
    first = first ? first : fiber;
    holds += fiber->value != 0;
    ++count;
  }
  if (!first) return;
  if (ended) fail("__syncthreads after some threads of the block have ended: " + where(first));
  const Block what = first->block_op;
  const int result = what == Block::count ? holds : what == Block::any ? holds > 0 : holds == count;
  for (Fiber* fiber : running) {
    if (fiber->state != State::at_block) continue;
    fiber->result = result;
    fiber->state = State::ready;
  }
}

char* dynamic_at() { return arena + kStaticArea + kDynamicOffset; }

void open_arena() {
  const size_t size = (kStaticArea + kDynamicOffset + dynamic_bytes + kGap + 1023) / 1024 * 1024;
  if (__tsan_create_fiber && arena) {
    kept_arenas.push_back(arena);
    arena = nullptr;
    if (kept_arenas.size() == kKeptArenas) {  // races between blocks are looked for among this many
      if (__tsan_acquire) __tsan_acquire(&end_sync);
      for (char* old : kept_arenas) free(old);
      kept_arenas.clear();
    }
  }
  if (!arena || arena_size < size) {
    free(arena);
    arena = static_cast<char*>(aligned_alloc(1024, size));
    arena_size = size;
  }
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(arena, arena_size);
  memset(dynamic_at(), settings.fill, dynamic_bytes);
  memset(dynamic_at() + dynamic_bytes, kGuard, kGap);
  if (__asan_poison_memory_region) __asan_poison_memory_region(arena, arena_size);
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(dynamic_at(), dynamic_bytes);
  arena_used = kGap;
  shared_bytes = 0;
  variable_count = 0;
}

bool is_guard(const char* at) {
  return std::all_of(at, at + kGap, [](char byte) { return static_cast<unsigned char>(byte) == kGuard; });
}

// Whether something was written behind a shared variable. AddressSanitizer says where, this only that.
void close_arena() {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(arena, arena_size);
  bool intact = is_guard(dynamic_at() + dynamic_bytes);
  for (int i = 0; i < variable_count; ++i) intact &= is_guard(variables[i].at + variables[i].bytes);
  if (!intact) fail("shared memory was written beyond its end");
}

bool run_round(std::vector<size_t>& order) {
  bool progress = false;
  if (settings.threads == shuffled) std::shuffle(order.begin(), order.end(), random_bits);
  for (const size_t thread : order) {
    Fiber* fiber = running[thread];
    if (fiber->state != State::ready) continue;
    progress = true;
    resume(fiber);
    if (fiber->state == State::at_warp || fiber->state == State::done) settle_warp(thread / 32);
    if (!error.empty()) break;
    if (settings.threads == shuffled && random_bits() % 8 == 0) break;  // go on in another order
  }
  return progress;
}

void run_block(dim3 grid, dim3 block, uint3 at) {
  ++counts.blocks;
  const size_t count = size_t(block.x) * block.y * block.z;
  counts.threads += count;
  // Under ThreadSanitizer two blocks' thread 0 must not be one fiber, or no race between them would be seen.
  const size_t shift = __tsan_create_fiber ? counts.blocks * 37 % count : 0;
  running.resize(count);
  open_arena();
  for (size_t thread = 0; thread < count; ++thread) {
    Fiber& fiber = fibers[(thread + shift) % count];
    const unsigned t = static_cast<unsigned>(thread);
    fiber.thread = t;
    fiber.place = {{t % block.x, t / block.x % block.y, t / block.x / block.y}, at, block, grid};
    fiber.state = State::ready;
    fiber.warp_parity = fiber.block_parity = 0;
    running[thread] = &fiber;
  }
  if (__tsan_release) __tsan_release(&start_sync);
  static std::vector<size_t> order;
  order.resize(count);
  std::iota(order.begin(), order.end(), size_t(0));
  if (settings.threads == descending) std::reverse(order.begin(), order.end());
  while (error.empty()) {
    bool progress = run_round(order);
    if (!error.empty()) break;
    settle_block();
    const Fiber* waiting = nullptr;
    for (const Fiber* fiber : running) {
      if (fiber->state != State::done) waiting = fiber;
      progress |= fiber->state == State::ready;
    }
    if (!waiting) break;
    if (!progress) fail("deadlock: " + where(waiting) + " waits for threads that do not come");
  }
  close_arena();
  if (!error.empty())
    for (Fiber& fiber : fibers) fiber.state = State::done, reset_stack(fiber);
  counts.most_shared = std::max<long long>(counts.most_shared, shared_bytes + dynamic_bytes);
}

void check_launch(const std::string& name, const void* kernel, const Configuration& configuration) {
  const auto [grid, block, shared, stream] = configuration;
  const auto refuse = [&](const char* why) { throw std::runtime_error(name + ": " + why); };
  if (!error.empty()) refuse(("a fault in host code before the launch: " + std::exchange(error, "")).c_str());
  if (guards < 1) refuse("launched without a device guard");
  if (stream != kStream) refuse("not launched on the current stream");
  if (!(grid.x && grid.y && grid.z && block.x && block.y && block.z)) refuse("a launch of nothing is an error on CUDA");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) refuse("the grid is too large");
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || uint64_t(block.x) * block.y * block.z > 1024)
    refuse("the block is too large");
  int allowed = static_cast<int>(kStaticLimit);
  for (const auto& [address, bytes] : allowed_shared)
    if (!kernel || address == kernel) allowed = std::max(allowed, bytes);
  if (shared > size_t(allowed)) refuse("more dynamic shared memory than cudaFuncSetAttribute has allowed");
}

// A kernel that touches memory that is not there ends with its launch, not with the process.
void no_memory(int number, siginfo_t* info, void*) {
  if (!current) {
    signal(number, SIG_DFL);  // not a kernel's fault: it comes again, and ends the process
    return;
  }
  char text[80];
  snprintf(text, sizeof text, "an access to memory that is not there, at %p, after ", info->si_addr);
  fail(text + where(current));
  to_main();  // never resumed
}

// Catches such faults for as long as it lives. AddressSanitizer has a report of its own.
struct CatchFaults {
  struct sigaction before[2];

  CatchFaults() {
    struct sigaction action = {};
    action.sa_sigaction = no_memory;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (__asan_poison_memory_region) return;
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
  }
  ~CatchFaults() {
    if (__asan_poison_memory_region) return;
    sigaction(SIGSEGV, &before[0], nullptr);
    sigaction(SIGBUS, &before[1], nullptr);
  }
};

// For ThreadSanitizer, which looks into memset(), the thread that comes first would race with all others.
void fill_unseen(char* at, int byte, size_t count) {
  asm volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(byte) : "memory");
}

std::vector<int64_t> block_order(int64_t total) {
  std::vector<int64_t> order(total);
  std::iota(order.begin(), order.end(), int64_t(0));
  if (settings.blocks == descending) std::reverse(order.begin(), order.end());
  if (settings.blocks == shuffled) std::shuffle(order.begin(), order.end(), random_bits);
  return order;
}

}  // namespace

void* static_shared(const void* key, size_t bytes, size_t align) {
  for (int i = 0; i < variable_count; ++i)
    if (variables[i].key == key) return variables[i].at;
  arena_used = (arena_used + align - 1) / align * align;
  if (variable_count == kMaxVariables || arena_used + bytes + kGap > kStaticArea) {
    fprintf(stderr, "emulator: more static shared memory than any GPU has\n");
    abort();
  }
  char* at = arena + arena_used;
  variables[variable_count++] = {key, at, bytes};
  arena_used += bytes + kGap;
  shared_bytes += bytes;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(at, bytes + kGap);
  fill_unseen(at, settings.fill, bytes);
  fill_unseen(at + bytes, kGuard, kGap);
  if (__asan_poison_memory_region) __asan_poison_memory_region(at + bytes, kGap);
  if (shared_bytes > kStaticLimit) fail("more than 48 KiB of static shared memory");
  const size_t limit = dynamic_bytes > kStaticLimit || !allowed_shared.empty() ? kSharedLimit : kStaticLimit;
  if (shared_bytes + dynamic_bytes > limit)
    fail("too much shared memory: " + std::to_string(shared_bytes + dynamic_bytes) + " bytes");
  return at;
}

void* dynamic_shared() { return dynamic_at(); }

int meet_in_block(Block what, bool predicate, int line) {
  ++counts.block_barriers;
  Fiber* fiber = current;
  char* sync = &block_sync[fiber->block_parity ^= 1];
  if (__tsan_release) __tsan_release(sync);
  fiber->block_op = what;
  fiber->value = predicate;
  fiber->line = line;
  fiber->state = State::at_block;
  to_main();
  if (__tsan_acquire) __tsan_acquire(sync);
  return static_cast<int>(fiber->result);
}

uint64_t meet_in_warp(Warp what, unsigned mask, uint64_t value, int argument, int width, int line) {
  Fiber* fiber = current;
  fiber->warp_op = what;
  fiber->mask = mask;
  fiber->value = value;
  fiber->argument = argument;
  fiber->width = width;
  fiber->line = line;
  if (!(mask >> fiber->lane() & 1)) fail("a lane meets others under a mask that leaves it out: " + where(fiber));
  if (width <= 0 || width > 32 || (width & (width - 1))) fail("a shuffle's width is no power of two: " + where(fiber));
  fiber->state = State::at_warp;
  if (what != Warp::sync) {  // only __syncwarp orders memory: votes and shuffles do not
    ++counts.votes;
    to_main();
    return fiber->result;
  }
  ++counts.warp_barriers;
  char* sync = &warp_sync[fiber->thread / 32][fiber->warp_parity ^= 1];
  if (__tsan_release) __tsan_release(sync);
  to_main();
  if (__tsan_acquire) __tsan_acquire(sync);
  return 0;
}

void launch(const char* name, const void* kernel, Body function, void* arguments, const Configuration& configuration) {
  ++counts.launches;
  check_launch(name, kernel, configuration);
  const dim3 grid = configuration.grid, block = configuration.block;
  random_bits.seed(settings.seed++);
  body = function;
  body_arguments = arguments;
  dynamic_bytes = configuration.shared;
  make_fibers(size_t(block.x) * block.y * block.z);
  if (__tsan_get_current_fiber) main_tsan = __tsan_get_current_fiber();
  const CatchFaults catch_faults;
  for (const int64_t i : block_order(int64_t(grid.x) * grid.y * grid.z)) {
    run_block(grid, block, {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)});
    if (!error.empty()) break;
  }
  if (__tsan_acquire) __tsan_acquire(&end_sync);
  for (char* old : kept_arenas) free(old);
  kept_arenas.clear();
  if (!error.empty()) throw std::runtime_error(std::string(name) + ": " + std::exchange(error, ""));
}

void allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || size_t(bytes) > kSharedLimit) throw std::runtime_error("cudaFuncSetAttribute: more than 227 KiB");
  allowed_shared[kernel] = bytes;
}

void check_stream(const char* what, cudaStream_t stream) {
  if (stream != kStream) throw std::runtime_error(std::string(what) + ": not on the current stream");
}

}  // namespace emulator

// ---- What the kernels' host side asks of CUDA and of torch's CUDA half, bound here by -Bsymbolic

extern "C" {

struct DeviceGuardOpaque;

int aoti_torch_create_device_guard(int32_t, DeviceGuardOpaque** guard) {
  ++emulator::guards;
  *guard = reinterpret_cast<DeviceGuardOpaque*>(&emulator::guards);
  return 0;
}
int aoti_torch_delete_device_guard(DeviceGuardOpaque*) {
  --emulator::guards;
  return 0;
}
int aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = emulator::kStream;
  return 0;
}
void torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = error ? strdup("an error of the emulated CUDA runtime") : nullptr;
}
void torch_c10_cuda_free_error_msg(char* message) { free(message); }

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated CUDA runtime"; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {  // an H100's
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    default: return 1;
  }
  return cudaSuccess;
}

// ---- UndefinedBehaviorSanitizer's runtime: kernels are compiled with its checks, and a fault ends the launch.

struct SourceLocation {  // what the data of every check begins with
  const char* file;
  uint32_t line, column;
};

static void undefined(const char* what, const SourceLocation* location) {
  std::string text = std::string(what) + " at " + location->file + ":" + std::to_string(location->line);
  if (emulator::current) text += ", " + emulator::where(emulator::current);
  emulator::fail(text);
}

void __ubsan_handle_type_mismatch_v1(SourceLocation* location, uintptr_t pointer) {
  undefined(pointer ? "a misaligned access" : "an access through a null pointer", location);
}
void __ubsan_handle_alignment_assumption(SourceLocation* location, uintptr_t, uintptr_t, uintptr_t) {
  undefined("a wrong assumption of alignment", location);
}
void __ubsan_handle_out_of_bounds(SourceLocation* location, uintptr_t) {
  undefined("an index beyond an array", location);
}
void __ubsan_handle_shift_out_of_bounds(SourceLocation* location, uintptr_t, uintptr_t) {
  undefined("a shift by too much", location);
}
void __ubsan_handle_add_overflow(SourceLocation* location, uintptr_t, uintptr_t) {
  undefined("a sum that overflows", location);
}
void __ubsan_handle_sub_overflow(SourceLocation* location, uintptr_t, uintptr_t) {
  undefined("a difference that overflows", location);
}
void __ubsan_handle_mul_overflow(SourceLocation* location, uintptr_t, uintptr_t) {
  undefined("a product that overflows", location);
}
void __ubsan_handle_negate_overflow(SourceLocation* location, uintptr_t) {
  undefined("a negation that overflows", location);
}
void __ubsan_handle_divrem_overflow(SourceLocation* location, uintptr_t, uintptr_t) {
  undefined("a division that overflows or by zero", location);
}

// ---- For kernels.py

__attribute__((visibility("default"))) void emulator_configure(int threads, int blocks, uint64_t seed, int fill) {
  emulator::settings = {threads, blocks, seed, fill};
}
__attribute__((visibility("default"))) void emulator_counts(long long* out) {
  memcpy(out, &emulator::counts, sizeof emulator::counts);
}
}
