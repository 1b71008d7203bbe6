"""SM clock, power and energy of the current CUDA device, through NVML."""

import ctypes
import statistics
import threading
import time

_SM_CLOCK = 1  # NVML_CLOCK_SM
_PERIOD_S = 0.02


class Telemetry(threading.Thread):
    """Samples clock and power while it is on. Without NVML (and on the CPU) all values are None."""

    def __init__(self, device_uuid=None):
        super().__init__(daemon=True)
        self.on, self.clocks, self.watts = False, [], []
        self.nvml, self.why_not = None, "not asked for"
        if device_uuid is None:
            return
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
            self.handle = ctypes.c_void_p()
            name, handle = f"GPU-{device_uuid}".encode(), ctypes.byref(self.handle)
            if nvml.nvmlInit_v2() or (
                nvml.nvmlDeviceGetHandleByUUID(name, handle) and nvml.nvmlDeviceGetHandleByIndex_v2(0, handle)
            ):
                raise OSError("NVML does not know the device")
            self.nvml = nvml
            self.start()
        except OSError as error:
            self.why_not = str(error)

    def _read(self, function, value, *arguments):
        status = getattr(self.nvml, function)(self.handle, *arguments, ctypes.byref(value))
        return None if status else value.value

    def run(self):
        while True:
            if self.on:
                clock = self._read("nvmlDeviceGetClockInfo", ctypes.c_uint(), _SM_CLOCK)
                milliwatts = self._read("nvmlDeviceGetPowerUsage", ctypes.c_uint())
                if clock is not None:
                    self.clocks.append(clock)
                if milliwatts is not None:
                    self.watts.append(milliwatts / 1e3)
            time.sleep(_PERIOD_S)

    def take(self):
        """(mean SM clock in MHz, mean watts) since the last take."""
        result = tuple(round(statistics.fmean(xs)) if xs else None for xs in (self.clocks, self.watts))
        self.clocks, self.watts = [], []
        return result

    def joules(self):
        """Energy since the driver was loaded; None if the device does not count it."""
        if self.nvml is None:
            return None
        millijoules = self._read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        return None if millijoules is None else millijoules / 1e3

    def driver(self):
        if self.nvml is None:
            return None
        text = ctypes.create_string_buffer(96)
        return text.value.decode() if self.nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0 else None
