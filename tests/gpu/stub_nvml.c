/* A libnvidia-ml.so.1 for the real nvidia-ml-py to load. It prints when it is shut down.
 *
 * By itself it has two GPUs: 24 GiB with 4 GiB used, and 8 GiB. $STUB_NVML makes it misbehave: init-fails,
 * count-fails, gpu1-lost, no-memory.
 *
 * $STUB_NVML_STATE names a directory that is read again for every question:
 *
 *   gpus          one line each, of words:
 *                   gpu I uuid U total_mib N used_mib N util PERCENT temp CELSIUS    the card of index I
 *                   proc I PID MIB|na     a process on it, whether it lives or not; counts as used
 *                   lost I                fell off the bus, until NVML is initialised anew without this line
 *                   broken I              every question about it is answered with "unknown error"
 *                   nomem I, mig I        tells no memory; is divided by MIG
 *                   wsl                   no process tells what it holds
 *                   hang, crash, init-fails, count-fails
 *                   lingering_s S         memory of a process comes back this long after it was found gone
 *   procs/PID     what the process PID holds while it lives: lines "INDEX MIB"
 *   procs/PID.gone  made here when PID was first found gone: the beginning of lingering_s
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
       GPU_IS_LOST = 15, UNKNOWN = 999 };
enum { MAX_GPUS = 16, MAX_PROCESSES = 256 };

#ifdef OLD_DRIVER
#define nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetComputeRunningProcesses_v2
#define nvmlDeviceGetGraphicsRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v2
#endif

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version, sensor; int celsius; } Temperature;

typedef struct {
    char uuid[64];
    long total_mib, used_mib, util, temp;
    int lost, broken, nomem, mig;
    int processes;
    struct { unsigned pid; long mib; } process[MAX_PROCESSES];
} Gpu;

static struct {
    int count, wsl, hang, crash, init_fails, count_fails;
    double lingering_s;
    Gpu gpu[MAX_GPUS];
} state;

static int remembered_lost[MAX_GPUS];

static int mode(const char *name) {
    const char *wanted = getenv("STUB_NVML");
    return wanted && !strcmp(wanted, name);
}

static Gpu *card(long index) {
    static Gpu nowhere;
    return index >= 0 && index < MAX_GPUS ? &state.gpu[index] : &nowhere;
}

static void add_process(long index, unsigned pid, long mib) {
    Gpu *gpu = card(index);
    if (gpu->processes < MAX_PROCESSES) {
        gpu->process[gpu->processes].pid = pid;
        gpu->process[gpu->processes++].mib = mib;
    }
    if (mib > 0) gpu->used_mib += mib;
}

static void read_line(char *line) {
    char *word[20] = {0};
    int words = 0;
    for (char *next = strtok(line, " \n"); next && words < 20; next = strtok(NULL, " \n")) word[words++] = next;
    if (!words) return;
    long index = words > 1 ? atol(word[1]) : 0;
    Gpu *gpu = card(index);
    if (!strcmp(word[0], "gpu")) {
        if (index >= state.count) state.count = index + 1;
        gpu->util = gpu->temp = -1;
        for (int i = 2; i + 1 < words; i += 2) {
            if (!strcmp(word[i], "uuid")) snprintf(gpu->uuid, sizeof gpu->uuid, "%s", word[i + 1]);
            if (!strcmp(word[i], "total_mib")) gpu->total_mib = atol(word[i + 1]);
            if (!strcmp(word[i], "used_mib")) gpu->used_mib += atol(word[i + 1]);
            if (!strcmp(word[i], "util")) gpu->util = atol(word[i + 1]);
            if (!strcmp(word[i], "temp")) gpu->temp = atol(word[i + 1]);
        }
    } else if (!strcmp(word[0], "proc") && words > 3) {
        add_process(index, (unsigned)atol(word[2]), strcmp(word[3], "na") ? atol(word[3]) : -1);
    } else if (!strcmp(word[0], "lost")) gpu->lost = 1;
    else if (!strcmp(word[0], "broken")) gpu->broken = 1;
    else if (!strcmp(word[0], "nomem")) gpu->nomem = 1;
    else if (!strcmp(word[0], "mig")) gpu->mig = 1;
    else if (!strcmp(word[0], "wsl")) state.wsl = 1;
    else if (!strcmp(word[0], "hang")) state.hang = 1;
    else if (!strcmp(word[0], "crash")) state.crash = 1;
    else if (!strcmp(word[0], "init-fails")) state.init_fails = 1;
    else if (!strcmp(word[0], "count-fails")) state.count_fails = 1;
    else if (!strcmp(word[0], "lingering_s") && words > 1) state.lingering_s = atof(word[1]);
}

/* A zombie has given back its memory. */
static int lives(long pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = 0;
    char *end = strrchr(text, ')');
    return end && end[1] && end[2] != 'Z' && end[2] != 'X';
}

/* Whether the memory of a process that is gone still counts. */
static int lingers(const char *path) {
    char gone[PATH_MAX];
    struct stat found;
    struct timespec now;
    if (state.lingering_s <= 0) return 0;
    snprintf(gone, sizeof gone, "%s.gone", path);
    if (stat(gone, &found)) {
        int made = open(gone, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        if (made >= 0) close(made);
        return 1;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec - found.st_mtim.tv_sec + (now.tv_nsec - found.st_mtim.tv_nsec) / 1e9 < state.lingering_s;
}

static void read_procs(const char *directory) {
    char path[PATH_MAX];
    struct dirent *entry;
    snprintf(path, sizeof path, "%s/procs", directory);
    DIR *procs = opendir(path);
    if (!procs) return;
    while ((entry = readdir(procs))) {
        char *end;
        long index, mib, pid = strtol(entry->d_name, &end, 10);
        if (pid <= 0 || *end) continue;
        snprintf(path, sizeof path, "%s/procs/%ld", directory, pid);
        int alive = lives(pid);
        if (!alive && !lingers(path)) continue;
        FILE *file = fopen(path, "r");
        if (!file) continue;
        while (fscanf(file, "%ld %ld", &index, &mib) == 2) {
            if (alive) add_process(index, (unsigned)pid, mib);
            else card(index)->used_mib += mib;
        }
        fclose(file);
    }
    closedir(procs);
}

static void read_state(void) {
    const char *directory = getenv("STUB_NVML_STATE");
    memset(&state, 0, sizeof state);
    if (directory) {
        char path[PATH_MAX], line[512];
        snprintf(path, sizeof path, "%s/gpus", directory);
        FILE *file = fopen(path, "r");
        if (file) {
            while (fgets(line, sizeof line, file)) read_line(line);
            fclose(file);
        }
        read_procs(directory);
    } else {
        char first[] = "gpu 0 uuid GPU-aaaa total_mib 24576 used_mib 4096", second[] = "gpu 1 uuid GPU-bbbb total_mib 8192";
        read_line(first);
        read_line(second);
        if (mode("gpu1-lost")) state.gpu[1].lost = 1;
        state.gpu[0].nomem = state.gpu[1].nomem = mode("no-memory");
        state.init_fails = mode("init-fails");
        state.count_fails = mode("count-fails");
    }
    for (int i = 0; i < MAX_GPUS; i++) {
        remembered_lost[i] |= state.gpu[i].lost;
        state.gpu[i].lost = remembered_lost[i];
    }
    while (state.hang) pause();
    if (state.crash) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        abort();
    }
}

/* The card behind a handle, or the reason why there is none. */
static int find(void *handle, Gpu **gpu) {
    long index = (long)handle - 1;
    read_state();
    if (index < 0 || index >= state.count) return INVALID_ARGUMENT;
    *gpu = &state.gpu[index];
    return (*gpu)->lost ? GPU_IS_LOST : (*gpu)->broken ? UNKNOWN : SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    memset(remembered_lost, 0, sizeof remembered_lost);
    read_state();
    return state.init_fails ? DRIVER_NOT_LOADED : SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { puts("shutdown"); fflush(stdout); return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    read_state();
    *count = state.count;
    return state.count_fails ? UNKNOWN : SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    Gpu *gpu;
    *handle = (void *)(long)(index + 1);
    return find(*handle, &gpu);
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    Gpu *gpu;
    int failed = find(handle, &gpu);
    if (!failed) snprintf(text, length, "%s", gpu->uuid);
    return failed;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    Gpu *gpu;
    int failed = find(handle, &gpu);
    if (!failed) snprintf(text, length, "Stub %ld", (long)handle - 1);
    return failed;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    Gpu *gpu;
    int failed = find(handle, &gpu);
    if (failed) return failed;
    if (gpu->nomem) return NOT_SUPPORTED;
    long used_mib = gpu->used_mib < gpu->total_mib ? gpu->used_mib : gpu->total_mib;
    memory->total = (unsigned long long)gpu->total_mib << 20;
    memory->used = (unsigned long long)used_mib << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *processes) {
    Gpu *gpu;
    int failed = find(handle, &gpu);
    if (failed) return failed;
    unsigned room = *count;
    *count = gpu->processes;
    if (!gpu->processes) return SUCCESS;
    if (!processes || room < *count) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++) {
        long mib = gpu->process[i].mib;
        unsigned long long used = state.wsl || mib < 0 ? ~0ULL : (unsigned long long)mib << 20;
        processes[i] = (Process){gpu->process[i].pid, used, ~0U, ~0U};
    }
    return SUCCESS;
}
/* Every process computes, the first one draws, too. */
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, Process *processes) {
    unsigned room = *count;
    int failed = nvmlDeviceGetComputeRunningProcesses_v3(handle, count, processes);
    if (!failed && room && *count) *count = 1;
    return failed;
}
int nvmlDeviceGetUtilizationRates(void *handle, Utilization *rates) {
    Gpu *gpu;
    int failed = find(handle, &gpu);
    if (failed) return failed;
    if (gpu->util < 0) return NOT_SUPPORTED;
    *rates = (Utilization){(unsigned)gpu->util, 0};
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) {
    Gpu *gpu;
    int failed = find(handle, &gpu);
    (void)sensor;
    if (failed) return failed;
    if (gpu->temp < 0) return NOT_SUPPORTED;
    *celsius = (unsigned)gpu->temp;
    return SUCCESS;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetTemperatureV(void *handle, Temperature *temperature) {
    unsigned celsius = 0;
    int failed = nvmlDeviceGetTemperature(handle, temperature->sensor, &celsius);
    temperature->celsius = (int)celsius;
    return failed;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    Gpu *gpu;
    int failed = find(handle, &gpu);
    if (failed) return failed;
    *current = *pending = gpu->mig;
    return SUCCESS;
}
#endif
