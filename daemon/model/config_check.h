// SPDX-License-Identifier: Apache-2.0
// Parts of architecture_check (config.c, rope.c only).
#pragma once

#include "daemon/model/config.h"

int config_check_number(const char *name, uint64_t value, uint64_t min, uint64_t max, struct error *err);
int config_check_real(const char *name, double value, double above, double max, struct error *err);      // NaN is refused
int config_check_rope(const struct architecture *a, struct error *err);
