// SPDX-License-Identifier: Apache-2.0
// A run's feature losses, in the order of trainer_prepare. Without such losses each does nothing.
#pragma once

struct architecture;
struct error;
struct trainer;

int features_resolve(struct trainer *t, struct error *err);    // layer maps: before any question is made
int features_probe(struct trainer *t, struct error *err);      // t->widths, from an answer: once there is a dataset
// t->features, for a student about to be opened
int features_prepare(struct trainer *t, const struct architecture *a, struct error *err);
