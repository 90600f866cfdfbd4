// SPDX-License-Identifier: Apache-2.0
// kdctl runs: shared by its commands alone.
#pragma once

#include "clients/kdctl/kdctl.h"

json_t *runs_call(struct kdctl *k, const char *method, const char *id, const char *rest);      // /v1/runs/ID/REST; NULL: said why
bool runs_state_is_final(const json_t *run);
int runs_conclude(const struct kdctl *k, const char *id, const json_t *run);                   // prints its end; 0 when it succeeded

int runs_watch(struct kdctl *k, int argc, char **argv);
int runs_plot(struct kdctl *k, int argc, char **argv);
