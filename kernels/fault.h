// SPDX-License-Identifier: Apache-2.0
// What is to be done about a device that failed for good. A backend says it in the field of its error, which goes wherever the error goes.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// As NVIDIA's catalog of Xid errors has it: a new process may find the device whole; the device needs a reset first; whoever sold it is to
// look at it.
enum device_fault { DEVICE_FAULT_NONE, DEVICE_FAULT_RESTART, DEVICE_FAULT_RESET, DEVICE_FAULT_SUPPORT, N_DEVICE_FAULTS };

const char *device_fault_name(enum device_fault fault);       // "restart", "reset", "support"; "" of none
const char *device_fault_hint(enum device_fault fault);       // a sentence for an operator
const char *device_fault_field(enum device_fault fault);      // "gpu_fault.reset"; "" of none
enum device_fault device_fault_of(const char *field);         // DEVICE_FAULT_NONE of any other

#ifdef __cplusplus
}
#endif
