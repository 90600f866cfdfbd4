// SPDX-License-Identifier: Apache-2.0
// For log_set_journal, in a program that links libsystemd.
#pragma once

#include "daemon/log.h"

log_journal_fn log_journal;
