/* Stands in for libnvidia-ml.so.1 in tool_nvml_test: one GPU, whose clock rises with every reading. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef void* device;
static int started = 0;
static unsigned clock_mhz = 1000;

int nvmlInit_v2(void) { return started++; }
int nvmlShutdown(void) { return --started; }

int nvmlSystemGetDriverVersion(char* version, unsigned length) {
    snprintf(version, length, "999.1");
    return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* id, device* handle) {
    if (strcmp(id, "0000:01:00.0") != 0) return 6; /* NVML_ERROR_NOT_FOUND */
    *handle = &started;
    return 0;
}

int nvmlDeviceGetClockInfo(device handle, int type, unsigned* mhz) {
    if (handle != &started || type != 1) return 2; /* NVML_ERROR_INVALID_ARGUMENT */
    *mhz = clock_mhz++;
    return 0;
}

int nvmlDeviceGetPowerUsage(device handle, unsigned* milliwatts) {
    if (handle != &started) return 2;
    *milliwatts = 654321;
    return 0;
}
