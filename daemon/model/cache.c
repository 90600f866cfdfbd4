// SPDX-License-Identifier: Apache-2.0
// The known prefixes are a radix tree: a node is a run of tokens and their slots, its children go on differently. A node is held by the
// sequences whose shared part ends in it or below it; only a leaf that nobody holds can make room.
#include "daemon/model/cache.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/weights.h"

#define TRIM 32                      // slots taken off a leaf at a time: looking for the leaf costs a walk through the tree

struct cache_node {
	struct cache_node *parent, *child, *next;        // next: sibling
	uint32_t n, capacity;                            // tokens of the run
	uint32_t *tokens, *slots;
	uint32_t n_holders;
	uint64_t used;                                   // when a sequence last came by
};

struct cache {
	struct backend *backend;
	struct act **layers;
	uint32_t n_layers, n_slots, n_free, n_nodes, n_idle;      // n_idle: slots of nodes that nobody holds
	uint32_t *free;                                  // (n_slots) a stack
	uint64_t clock;
	struct cache_node root;                          // of no tokens
};

static int layer_elements(const struct architecture *a, uint32_t n_slots, size_t *ret_n, struct error *err)
{
	size_t width = 2 * (size_t)a->n_kv_heads * a->head_size;
	if (__builtin_mul_overflow(width, (size_t)n_slots, ret_n))
		return error_set(err, ERROR_TOO_LARGE, "cache-tokens", "%u places of width %zu", n_slots, width);
	return 0;
}

int cache_need(const struct architecture *a, uint32_t n_slots, struct backend_need *need, struct error *err)
{
	size_t n = 0;
	int r = layer_elements(a, n_slots, &n, err);
	uint64_t all = 0;
	if (r == 0 && __builtin_mul_overflow((uint64_t)n, (uint64_t)a->n_layers, &all))
		r = error_set(err, ERROR_TOO_LARGE, "cache-tokens", "%u places in %u layers", n_slots, a->n_layers);
	if (r < 0)
		return r;
	need->parts[BACKEND_PART_CACHE].n_act += all;
	need->parts[BACKEND_PART_CACHE].n_arrays += a->n_layers;
	return 0;
}

int cache_open(const struct weights *w, uint32_t n_slots, struct cache **ret_cache, struct error *err)
{
	const struct architecture *a = &w->architecture;
	size_t n;
	int r = layer_elements(a, n_slots, &n, err);
	if (r < 0)
		return r;
	struct cache *c = calloc(1, sizeof *c);
	if (c) {
		*c = (struct cache){.backend = w->backend, .n_layers = a->n_layers, .n_slots = n_slots, .n_free = n_slots};
		c->layers = calloc(a->n_layers, sizeof *c->layers);
		c->free = calloc(n_slots, sizeof *c->free);
	}
	if (!c || !c->layers || !c->free) {
		cache_close(c);
		return error_set(err, ERROR_MEMORY, "cache-tokens", "no memory for a cache of %u places", n_slots);
	}
	for (uint32_t i = 0; i < n_slots; i++)
		c->free[i] = n_slots - 1 - i;            // the lowest are given first
	for (uint32_t i = 0; i < a->n_layers; i++) {
		if (!(c->layers[i] = w->backend->ops->act_new(w->backend, n, err))) {
			cache_close(c);
			return error_errno(ERROR_MEMORY);
		}
	}
	*ret_cache = c;
	return 0;
}

// ---- the tree

static struct cache_node *node_new(uint32_t capacity)
{
	struct cache_node *n = calloc(1, sizeof *n);
	if (!n)
		return NULL;
	n->capacity = capacity;
	n->tokens = calloc(capacity, sizeof *n->tokens);
	n->slots = calloc(capacity, sizeof *n->slots);
	if (n->tokens && n->slots)
		return n;
	free(n->tokens);
	free(n->slots);
	free(n);
	return NULL;
}

static void node_free(struct cache_node *n)
{
	free(n->tokens);
	free(n->slots);
	free(n);
}

static void node_append(struct cache_node *n, const uint32_t *tokens, const uint32_t *slots, uint32_t count)
{
	memcpy(n->tokens + n->n, tokens, count * sizeof *tokens);
	memcpy(n->slots + n->n, slots, count * sizeof *slots);
	n->n += count;
}

static struct cache_node **link_of(struct cache_node *n)
{
	struct cache_node **at = &n->parent->child;
	while (*at != n)
		at = &(*at)->next;
	return at;
}

static void node_adopt(struct cache *c, struct cache_node *parent, struct cache_node *n)
{
	n->parent = parent;
	n->next = parent->child;
	parent->child = n;
	c->n_nodes++;
}

// Cuts a node after its first `at` tokens; returns the upper part, or NULL without memory.
static struct cache_node *node_split(struct cache *c, struct cache_node *n, uint32_t at)
{
	struct cache_node *upper = node_new(at);
	if (!upper)
		return NULL;
	node_append(upper, n->tokens, n->slots, at);
	upper->used = n->used;
	upper->n_holders = n->n_holders;
	*link_of(n) = n->next;
	node_adopt(c, n->parent, upper);
	n->n -= at;
	memmove(n->tokens, n->tokens + at, n->n * sizeof *n->tokens);
	memmove(n->slots, n->slots + at, n->n * sizeof *n->slots);
	n->parent = upper;
	n->next = NULL;
	upper->child = n;
	return upper;
}

static struct cache_node *child_of(const struct cache_node *n, uint32_t token)
{
	struct cache_node *child = n->child;
	while (child && child->tokens[0] != token)
		child = child->next;
	return child;
}

static uint32_t common(const struct cache_node *n, const uint32_t *tokens, uint32_t count)
{
	uint32_t i = 0;
	while (i < n->n && i < count && n->tokens[i] == tokens[i])
		i++;
	return i;
}

static void touch(struct cache *c, struct cache_node *n)
{
	for (c->clock++; n; n = n->parent)
		n->used = c->clock;
}

// Every node, parents first, without recursion; NULL after the last.
static struct cache_node *node_next(struct cache_node *n)
{
	if (n->child)
		return n->child;
	while (n && !n->next)
		n = n->parent;
	return n ? n->next : NULL;
}

static struct cache_node *oldest_leaf(struct cache *c)
{
	struct cache_node *best = NULL;
	for (struct cache_node *n = c->root.child; n; n = node_next(n))
		if (!n->child && !n->n_holders && (!best || n->used < best->used))
			best = n;
	return best;
}

static void free_slots(struct cache *c, const uint32_t *slots, uint32_t n)
{
	for (uint32_t i = n; i-- > 0;)
		c->free[c->n_free++] = slots[i];
}

// Makes n slots free, if it can be done.
static bool make_room(struct cache *c, uint32_t n)
{
	while (c->n_free < n) {
		struct cache_node *leaf = oldest_leaf(c);
		uint32_t need = n - c->n_free > TRIM ? n - c->n_free : TRIM;
		if (!leaf)
			return false;
		uint32_t trim = leaf->n < need ? leaf->n : need;
		leaf->n -= trim;
		free_slots(c, leaf->slots + leaf->n, trim);
		c->n_idle -= trim;
		if (leaf->n)
			continue;
		*link_of(leaf) = leaf->next;
		c->n_nodes--;
		node_free(leaf);
	}
	return true;
}

bool cache_take(struct cache *c, uint32_t n, uint32_t *ret_slots)
{
	if (!make_room(c, n))
		return false;
	for (uint32_t i = 0; i < n; i++)
		ret_slots[i] = c->free[--c->n_free];
	return true;
}

void cache_give(struct cache *c, uint32_t n, const uint32_t *slots)
{
	free_slots(c, slots, n);
}

struct cache *cache_close(struct cache *c)
{
	if (!c)
		return NULL;
	for (struct cache_node *n = c->root.child, *next; n; n = next) {
		if (n->child) {
			next = n->child;
			continue;
		}
		next = n->next ? n->next : n->parent == &c->root ? NULL : n->parent;
		n->parent->child = n->next;
		node_free(n);
	}
	for (uint32_t i = 0; c->layers && i < c->n_layers; i++)
		c->backend->ops->act_free(c->backend, c->layers[i]);
	free(c->layers);
	free(c->free);
	free(c);
	return NULL;
}

struct act *cache_layer(struct cache *c, uint32_t layer)
{
	return c->layers[layer];
}

// ---- sequences

static void release(struct cache *c, struct cache_node *n)
{
	for (; n; n = n->parent)
		if (--n->n_holders == 0)
			c->n_idle += n->n;
}

// The sequence's shared part now ends in n.
static void hold(struct cache *c, struct cache_sequence *s, struct cache_node *n)
{
	struct cache_node *before = s->node;
	s->node = n;
	for (; n; n = n->parent)
		if (n->n_holders++ == 0)
			c->n_idle -= n->n;
	release(c, before);
	touch(c, s->node);
}

int cache_begin(struct cache *c, const uint32_t *tokens, uint32_t n_tokens, uint32_t capacity, struct cache_sequence *ret_sequence,
		struct error *err)
{
	struct cache_sequence s = {.slots = calloc(capacity ? capacity : 1, sizeof *s.slots), .capacity = capacity};
	struct cache_node *n = &c->root, *child;
	if (!s.slots)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a sequence of %u positions", capacity);
	while (s.n < n_tokens && (child = child_of(n, tokens[s.n]))) {
		uint32_t same = common(child, tokens + s.n, n_tokens - s.n);
		if (same < child->n && !(child = node_split(c, child, same)))
			break;
		memcpy(s.slots + s.n, child->slots, same * sizeof *s.slots);
		s.n += same;
		n = child;
	}
	s.n_shared = s.n;
	hold(c, &s, n);
	*ret_sequence = s;
	return 0;
}

bool cache_extend(struct cache *c, struct cache_sequence *s, uint32_t n)
{
	if (n > s->capacity - s->n || !cache_take(c, n, s->slots + s->n))
		return false;
	s->n += n;
	return true;
}

// The next of the sequence's own positions may be known already (another computed them at the same time): then ours are given back. 1
// when it was so, 0 when not, -1 without memory.
static int follow(struct cache *c, struct cache_sequence *s, const uint32_t *tokens)
{
	struct cache_node *child = s->n_shared < s->n ? child_of(s->node, tokens[s->n_shared]) : NULL;
	if (!child)
		return 0;
	uint32_t same = common(child, tokens + s->n_shared, s->n - s->n_shared);
	if (same < child->n && !(child = node_split(c, child, same)))
		return -1;
	free_slots(c, s->slots + s->n_shared, same);
	memcpy(s->slots + s->n_shared, child->slots, same * sizeof *s->slots);
	s->n_shared += same;
	hold(c, s, child);
	return 1;
}

// A leaf that is ours alone grows, so that a sequence that comes back token by token does not become a chain of nodes.
static bool grow(struct cache_sequence *s, const uint32_t *tokens, uint32_t count)
{
	struct cache_node *n = s->node;
	if (!n->parent || n->child || n->n_holders > 1)
		return false;
	if (count > n->capacity - n->n) {
		uint32_t capacity = n->n + count + n->n / 2;
		uint32_t *more_tokens = realloc(n->tokens, capacity * sizeof *more_tokens);
		if (more_tokens)
			n->tokens = more_tokens;
		uint32_t *more_slots = realloc(n->slots, capacity * sizeof *more_slots);
		if (more_slots)
			n->slots = more_slots;
		if (!more_tokens || !more_slots)
			return false;
		n->capacity = capacity;
	}
	node_append(n, tokens + s->n_shared, s->slots + s->n_shared, count);
	return true;
}

void cache_share(struct cache *c, struct cache_sequence *s, const uint32_t *tokens)
{
	int r;
	while ((r = follow(c, s, tokens)) > 0)
		;
	uint32_t count = s->n - s->n_shared;
	if (r < 0 || !count)
		return;
	if (!grow(s, tokens, count)) {
		struct cache_node *n = node_new(count);
		if (!n)
			return;    // they stay its own
		node_append(n, tokens + s->n_shared, s->slots + s->n_shared, count);
		node_adopt(c, s->node, n);
		c->n_idle += count;
		hold(c, s, n);
	}
	s->n_shared = s->n;
	touch(c, s->node);
}

void cache_end(struct cache *c, struct cache_sequence *s)
{
	if (!s->slots)
		return;
	free_slots(c, s->slots + s->n_shared, s->n - s->n_shared);
	release(c, s->node);
	free(s->slots);
	*s = (struct cache_sequence){0};
}

struct cache_usage cache_usage(const struct cache *c)
{
	return (struct cache_usage){c->n_slots, c->n_slots - c->n_free, c->n_idle, c->n_nodes};
}
