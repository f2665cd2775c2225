// The CUDA runtime for cuda_shim.h, which includes this: devices that differ in what decides how rows are shared out.
#pragma once

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoDevice = 100 };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor,
    cudaDevAttrComputeCapabilityMajor,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize,
    cudaFuncAttributePreferredSharedMemoryCarveout,
    cudaFuncAttributeNonPortableClusterSizeAllowed,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        struct {
            unsigned x, y, z;
        } clusterDim;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

namespace kd_shim {

struct Card {
    int major, processors, shared_block, shared_processor, most_blocks;
};

// One with all the room of a large card; then, so that small rows take every path: one whose rows need clusters of up
// to 16 blocks, one without clusters, and one that refuses more than 8 blocks and cannot hold a row in these.
constexpr Card kCards[] = {
    {9, 132, 227 << 10, 228 << 10, 16},
    {9, 4, 8 << 10, 12 << 10, 16},
    {8, 4, 8 << 10, 16 << 10, 1},
    {9, 2, 6 << 10, 12 << 10, 8},
};
constexpr int kCardCount = int(sizeof(kCards) / sizeof(kCards[0]));

inline int current_card = 0;

// What has been recorded since a capture began.
inline bool capturing = false;
inline std::vector<std::function<void()>> recorded;

inline int blocks_of(const cudaLaunchConfig_t& config) {
    return config.numAttrs == 0 ? 1 : int(config.attrs[0].val.clusterDim.x);
}

inline bool launchable(const cudaLaunchConfig_t& config) {
    const Card& card = kCards[current_card];
    const int blocks = blocks_of(config);
    return int(config.dynamicSmemBytes) <= card.shared_block && config.gridDim.x % unsigned(blocks) == 0 &&
           config.blockDim.x * config.blockDim.y % kLanes == 0 && config.blockDim.x * config.blockDim.y <= 1024 &&
           blocks <= card.most_blocks;
}

}  // namespace kd_shim

inline const char* cudaGetErrorString(cudaError_t) { return "refused by the shim"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = kd_shim::kCardCount;
    return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
    *device = kd_shim::current_card;
    return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= kd_shim::kCardCount) return cudaErrorNoDevice;
    kd_shim::current_card = device;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
    const kd_shim::Card& card = kd_shim::kCards[device];
    *value = which == cudaDevAttrMultiProcessorCount                ? card.processors
             : which == cudaDevAttrMaxSharedMemoryPerBlockOptin     ? card.shared_block
             : which == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? card.shared_processor
                                                                    : card.major;
    return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
    *clusters = kd_shim::launchable(*config) ? 1 : 0;
    return cudaSuccess;
}

namespace kd_shim {

inline void enqueue(std::function<void()> work) {
    if (capturing) {
        recorded.push_back(std::move(work));
    } else {
        work();
    }
}

}  // namespace kd_shim

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               std::common_type_t<Parameters>... arguments) {
    if (!kd_shim::launchable(*config)) return cudaErrorInvalidValue;
    kd_shim::enqueue([=, grid = config->gridDim, block = config->blockDim, blocks = kd_shim::blocks_of(*config),
                      bytes = config->dynamicSmemBytes] {
        kd_shim::run_grid(grid, block, blocks, bytes, [&] { kernel(arguments...); });
    });
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
    kd_shim::enqueue([=] { std::memset(memory, value, bytes); });
    return cudaSuccess;
}

// ---- for csrc/test/check_cuda.cpp ----------------------------------------------------------------------------------

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal };
using cudaGraph_t = std::vector<std::function<void()>>*;
using cudaGraphExec_t = cudaGraph_t;

inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    *memory = std::malloc(bytes);
    return cudaSuccess;
}

inline cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = nullptr;
    return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    kd_shim::capturing = true;
    kd_shim::recorded.clear();
    return cudaSuccess;
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    kd_shim::capturing = false;
    *graph = new std::vector<std::function<void()>>(kd_shim::recorded);
    return cudaSuccess;
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* runnable, cudaGraph_t graph, unsigned long long) {
    *runnable = new std::vector<std::function<void()>>(*graph);
    return cudaSuccess;
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t runnable, cudaStream_t) {
    for (const auto& work : *runnable) work();
    return cudaSuccess;
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t runnable) {
    delete runnable;
    return cudaSuccess;
}
