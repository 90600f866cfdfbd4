// SPDX-License-Identifier: Apache-2.0
// The command line of kdserved: settings over those of the environment over those of --config, and the words that only print.
#pragma once

#include <stdbool.h>

struct config_errors;
struct options;

#define EXIT_USAGE 2
#define EXIT_DEVICE 70               // EX_SOFTWARE: the device failed while serving; a new process may find it whole
#define EXIT_DEVICE_RESET 69         // EX_UNAVAILABLE: it must be reset before any process may use it; in RestartPreventExitStatus too
#define EXIT_BAD_CONFIG 78           // EX_CONFIG: the unit's RestartPreventExitStatus, so that systemd does not try for ever

enum arguments_mode { MODE_RUN, MODE_CHECK, MODE_HELP, MODE_VERSION, MODE_PRINT_CONFIG, MODE_PRINT_MAN };

// 0, or the exit status with every error found; a bad command line (EXIT_USAGE) ends it at once. *o is then not to be used.
int arguments_read(struct options *o, char **argv, enum arguments_mode *ret_mode, struct config_errors *all);
void arguments_warn(struct config_errors *all);      // variables that look like settings and are none
bool arguments_print(enum arguments_mode mode);      // does what a printing mode asks; false for the others
