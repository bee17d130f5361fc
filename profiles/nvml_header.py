"""NVIDIA's nvml.h, as far as we ask: functions, structures and numbers, of CUDA 11 to 13.

What drivers differ in:

=======================================  ======  ===============================================
name                                     driver  before, or beside it
=======================================  ======  ===============================================
nvmlDeviceGetComputeRunningProcesses_v3  510     _v2 (from 450), no suffix; see `STRIDES`
nvmlDeviceGetMemoryInfo_v2               510     no suffix: there, ``used`` holds the reserve too
nvmlDeviceGetCurrentClocksEventReasons   535     nvmlDeviceGetCurrentClocksThrottleReasons
NVML_FI_DEV_POWER_INSTANT                535     nvmlDeviceGetPowerUsage: from Ampere on, GA100
                                                 apart, the mean of the last second
=======================================  ======  ===============================================
"""

from __future__ import annotations

from ctypes import POINTER, Structure, c_char_p, c_int, c_longlong, c_uint, c_ulonglong, c_void_p
from typing import Any

INSUFFICIENT_SIZE, FUNCTION_NOT_FOUND = 7, 13  # nvmlReturn_t
NOT_AVAILABLE = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE, of unsigned long long
TEMPERATURE_GPU = 0
CLOCKS = {"gpu": 1, "gpu_memory": 2}  # NVML_CLOCK_SM, NVML_CLOCK_MEM
POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, milliwatts
POLICIES = {"power": 0, "thermal": 1, "board_limit": 3}  # nvmlPerfPolicyType_t
TEXT_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE, and NVML_DEVICE_NAME_V2_BUFFER_SIZE
MEMORY_V2 = 40 | 2 << 24  # NVML_STRUCT_VERSION(Memory, 2)

POISON = b"\xa5"
# Bytes from one process to the next in the list of those that compute: pid, bytes; + two numbers
# of MIG's; + protected bytes. Drivers 535.43 to 535.86 fill 32 for a _v3 that has 24 before and
# after, and a _v3 of 16 was seen: so what was written is measured, and no name is believed.
STRIDES = (16, 24, 32)


class Memory(Structure):
    _fields_ = [(name, c_ulonglong) for name in ("total", "free", "used")]


class MemoryV2(Structure):
    _fields_ = [
        ("version", c_uint),
        *((name, c_ulonglong) for name in ("total", "reserved", "free", "used")),
    ]


class Violation(Structure):
    _fields_ = [("reference_microseconds", c_ulonglong), ("nanoseconds", c_ulonglong)]


class FieldValue(Structure):
    """value: a union of 8 bytes, of which a type below 8 bytes fills the first."""

    _fields_ = [
        ("field", c_uint),
        ("scope", c_uint),
        ("timestamp", c_longlong),
        ("latency", c_longlong),
        ("type", c_uint),
        ("code", c_int),
        ("value", c_ulonglong),
    ]


UNSIGNED_INT = 1  # NVML_VALUE_TYPE_UNSIGNED_INT
_DEVICE = c_void_p
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "nvmlInit_v2": (),
    "nvmlInit": (),
    "nvmlShutdown": (),
    "nvmlErrorString": (c_int,),
    "nvmlSystemGetDriverVersion": (c_char_p, c_uint),
    "nvmlDeviceGetCount_v2": (POINTER(c_uint),),
    "nvmlDeviceGetCount": (POINTER(c_uint),),
    "nvmlDeviceGetHandleByIndex_v2": (c_uint, POINTER(_DEVICE)),
    "nvmlDeviceGetHandleByIndex": (c_uint, POINTER(_DEVICE)),
    "nvmlDeviceGetHandleByUUID": (c_char_p, POINTER(_DEVICE)),
    "nvmlDeviceGetName": (_DEVICE, c_char_p, c_uint),
    "nvmlDeviceGetUUID": (_DEVICE, c_char_p, c_uint),
    "nvmlDeviceGetCudaComputeCapability": (_DEVICE, POINTER(c_int), POINTER(c_int)),
    "nvmlDeviceGetMemoryInfo_v2": (_DEVICE, POINTER(MemoryV2)),
    "nvmlDeviceGetMemoryInfo": (_DEVICE, POINTER(Memory)),
    "nvmlDeviceGetComputeRunningProcesses_v3": (_DEVICE, POINTER(c_uint), c_void_p),
    "nvmlDeviceGetComputeRunningProcesses_v2": (_DEVICE, POINTER(c_uint), c_void_p),
    "nvmlDeviceGetComputeRunningProcesses": (_DEVICE, POINTER(c_uint), c_void_p),
    "nvmlDeviceGetFieldValues": (_DEVICE, c_int, POINTER(FieldValue)),
    "nvmlDeviceGetPowerUsage": (_DEVICE, POINTER(c_uint)),
    "nvmlDeviceGetTotalEnergyConsumption": (_DEVICE, POINTER(c_ulonglong)),
    "nvmlDeviceGetClockInfo": (_DEVICE, c_int, POINTER(c_uint)),
    "nvmlDeviceGetTemperature": (_DEVICE, c_int, POINTER(c_uint)),
    "nvmlDeviceGetCurrentClocksEventReasons": (_DEVICE, POINTER(c_ulonglong)),
    "nvmlDeviceGetCurrentClocksThrottleReasons": (_DEVICE, POINTER(c_ulonglong)),
    "nvmlDeviceGetViolationStatus": (_DEVICE, c_int, POINTER(Violation)),
    "nvmlDeviceGetEnforcedPowerLimit": (_DEVICE, POINTER(c_uint)),
    "nvmlDeviceGetPowerManagementDefaultLimit": (_DEVICE, POINTER(c_uint)),
}
INIT = ("nvmlInit_v2", "nvmlInit")
COUNT = ("nvmlDeviceGetCount_v2", "nvmlDeviceGetCount")
HANDLE = ("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex")
PROCESSES = (
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses",
)
THROTTLING = (
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)
