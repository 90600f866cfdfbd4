// SPDX-License-Identifier: Apache-2.0
// The Prometheus text of GET /metrics. Series are a fixed set: no client can make one.
#pragma once

struct buffer;
struct service;

void metrics_encode(struct buffer *b, struct service *s);
