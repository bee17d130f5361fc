/* NVML as a shared library: the signatures and layouts of nvml.h, with one GPU that tells fixed
 * numbers. -DSTRIDE=16|24|32: what lies from one process to the next. -DOLDER: names without
 * suffixes, and no field values. Functions that are not here are missing in that driver. */
#include <string.h>

typedef void *device;
#define ME ((device)0x123456789abcUL)
#define CHECK(d) if ((d) != ME) return 2

#ifndef STRIDE
#define STRIDE 24
#endif
#ifdef OLDER
#define NAME(newer, older) older
#else
#define NAME(newer, older) newer
#endif

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned int version; unsigned long long total, reserved, free, used; };
struct process {
    unsigned int pid;
    unsigned long long used;
#if STRIDE > 16
    unsigned int gpu_instance, compute_instance;
#endif
#if STRIDE > 24
    unsigned long long protected_bytes;
#endif
};
_Static_assert(sizeof(struct process) == STRIDE, "as nvml.h lays it out");
struct violation { unsigned long long reference, time; };
union value { double d; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; };
struct field {
    unsigned int id, scope;
    long long timestamp, latency;
    int type, code;
    union value value;
};

static int text(const char *words, char *buffer, unsigned int room) {
    if (strlen(words) >= room) return 7;
    strcpy(buffer, words);
    return 0;
}

int NAME(nvmlInit_v2, nvmlInit)(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char *buffer, unsigned int room) { return text("550.1", buffer, room); }
int NAME(nvmlDeviceGetCount_v2, nvmlDeviceGetCount)(unsigned int *count) { *count = 1; return 0; }
int NAME(nvmlDeviceGetHandleByIndex_v2, nvmlDeviceGetHandleByIndex)(unsigned int index, device *out) {
    if (index) return 2;
    *out = ME;
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device *out) {
    if (strcmp(uuid, "MIG-stub")) return 6;
    *out = ME;
    return 0;
}
int nvmlDeviceGetName(device d, char *buffer, unsigned int room) {
    CHECK(d);
    return text("Stub 9000", buffer, room);
}
int nvmlDeviceGetUUID(device d, char *buffer, unsigned int room) {
    CHECK(d);
    return text("GPU-stub", buffer, room);
}
int nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) {
    CHECK(d);
    *major = 11;
    *minor = 0;
    return 0;
}
#ifndef OLDER
int nvmlDeviceGetMemoryInfo_v2(device d, struct memory_v2 *out) {
    CHECK(d);
    if (out->version != (sizeof *out | 2u << 24)) return 25;
    out->total = 80ULL << 30;
    out->reserved = 1ULL << 30;
    out->used = 5ULL << 30;
    out->free = 74ULL << 30;
    return 0;
}
int nvmlDeviceGetFieldValues(device d, int count, struct field *out) {
    CHECK(d);
    for (int i = 0; i < count; i++) {
        memset(&out[i].value, 0xff, sizeof out[i].value); /* what a union may keep */
        out[i].code = out[i].id == 186 && out[i].scope == 0 ? 0 : 3;
        out[i].type = 1;
        out[i].value.ui = 123456;
    }
    return 0;
}
#endif
int nvmlDeviceGetMemoryInfo(device d, struct memory *out) {
    CHECK(d);
    out->total = 80ULL << 30;
    out->used = 6ULL << 30;
    out->free = 74ULL << 30;
    return 0;
}
int NAME(nvmlDeviceGetComputeRunningProcesses_v3, nvmlDeviceGetComputeRunningProcesses)(
    device d, unsigned int *count, struct process *out) {
    CHECK(d);
    unsigned int room = *count;
    *count = 100;
    if (room < 100) return 7;
    memset(out, 0, 100 * sizeof *out);
    for (unsigned int i = 0; i < 100; i++) {
        out[i].pid = 1000 + i;
        out[i].used = i == 99 ? ~0ULL : (unsigned long long)i << 33;
#if STRIDE > 16
        out[i].gpu_instance = out[i].compute_instance = 0xFFFFFFFF;
#endif
    }
    return 0;
}
int nvmlDeviceGetPowerUsage(device d, unsigned int *out) { CHECK(d); *out = 99000; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long *out) {
    CHECK(d);
    *out = 6000000000123ULL;
    return 0;
}
int nvmlDeviceGetClockInfo(device d, int domain, unsigned int *out) {
    CHECK(d);
    *out = domain == 1 ? 1410 : domain == 2 ? 1512 : 0;
    return 0;
}
int nvmlDeviceGetTemperature(device d, int sensor, unsigned int *out) {
    CHECK(d);
    *out = 40 + sensor;
    return 0;
}
int NAME(nvmlDeviceGetCurrentClocksEventReasons, nvmlDeviceGetCurrentClocksThrottleReasons)(
    device d, unsigned long long *out) {
    CHECK(d);
    *out = 0x8000000000000005ULL;
    return 0;
}
int nvmlDeviceGetViolationStatus(device d, int policy, struct violation *out) {
    CHECK(d);
    if (policy == 3) return 3;
    out->reference = 1;
    out->time = 7000000ULL * (policy + 1);
    return 0;
}
int nvmlDeviceGetEnforcedPowerLimit(device d, unsigned int *out) { CHECK(d); *out = 300000; return 0; }
