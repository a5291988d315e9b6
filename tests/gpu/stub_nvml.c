/* A libnvidia-ml.so.1 of two GPUs, for the real nvidia-ml-py to load. $STUB_NVML makes it misbehave:
 * init-fails, count-fails, gpu1-lost, no-memory. It prints when it is shut down. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999 };

typedef struct { unsigned long long total, free, used; } Memory;

static const Memory memories[2] = {{24ULL << 30, 20ULL << 30, 4ULL << 30}, {8ULL << 30, 8ULL << 30, 0}};
static const char *uuids[2] = {"GPU-aaaa", "GPU-bbbb"};

static int mode(const char *name) {
    const char *wanted = getenv("STUB_NVML");
    return wanted && !strcmp(wanted, name);
}
static long index_of(void *handle) { return (long)handle - 1; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return mode("init-fails") ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlShutdown(void) { puts("shutdown"); fflush(stdout); return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 2;
    return mode("count-fails") ? UNKNOWN : SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(long)(index + 1);
    return index == 1 && mode("gpu1-lost") ? GPU_IS_LOST : SUCCESS;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    snprintf(text, length, "%s", uuids[index_of(handle)]);
    return SUCCESS;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    snprintf(text, length, "Stub %ld", index_of(handle));
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    *memory = memories[index_of(handle)];
    return mode("no-memory") ? NOT_SUPPORTED : SUCCESS;
}
