// SPDX-License-Identifier: Apache-2.0
// The only door to the devices: every operation a transformer needs, for scoring and for training, as one table.
//
// Shape letters, used in kernels/ and daemon/model/ and never otherwise:
//   T positions in the packed batch    C model width        F feed-forward width    V vocabulary size    K top-k
//   NH query heads    NKV key/value heads    D head size    W = (NH + 2 NKV) D, one row of fused q|k|v
//   R of a head's dimensions, the first, that rotate (even, <= D)
//
// Two kinds of device array, opaque to callers (host code never dereferences them):
//   struct real   residual stream, parameters, gradients, logits, optimiser state    ref: double, cpu: float, cuda: float
//   struct act    inputs and outputs of products inside a layer                      ref: double, cpu: float, cuda: bfloat16
//
// Operations return nothing. The first failure (a device error, never bad input: callers validate) sticks to the backend and
// later calls do nothing; backend_sync() waits for the work given so far and reports it. A failed backend stays failed.
// One thread uses a backend at a time. Results of a row depend on that row's sequence alone: never on its neighbours in the batch,
// on T, or on the number of threads (tiles are of fixed shape; sums have a fixed order).
//
// kernels/ref is the specification of each operation; tests/ops holds the others to it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"
#include "kernels/fault.h"

struct error;
struct real;
struct act;
struct weight;            // a matrix (N rows, K columns) used as y = x Wᵀ, in whatever form the device likes
struct backend;

enum backend_numeric { BACKEND_NUMERIC_AUTO, BACKEND_NUMERIC_F32, BACKEND_NUMERIC_BF16, BACKEND_NUMERIC_INT8, BACKEND_NUMERIC_FP8 };

// INT8 (cpu, ref; elsewhere ERROR_UNSUPPORTED): products with loaded matrices. Rows of both operands are cut into groups of INT8_GROUP
// terms, the last may be shorter. A group's scale is max|x| / 127, 0 where that maximum is below INT8_SMALLEST; its integers are
// x (127 / max|x|), halves to even, all in float. The sum of products of two groups is an exact integer; y is the sum over groups of that
// integer times both scales. A group with a value that is not finite has the scale NaN. embed gives what a row's integers stand for.
// cpu: attention rounds its operands as in BF16. Trainable matrices are float, and where there are some attention is.
#define INT8_GROUP 32            // of 64, SmolLM2-135M's rows are off by 0.008 nats on average, of 32 by less than 0.005
#define INT8_SMALLEST 1e-30f     // 127 / max|x| stays finite

// FP8 (cuda from compute capability 8.9 on, ref; elsewhere ERROR_UNSUPPORTED): products with matrices loaded as WEIGHT_BLOCK, of E4M3 numbers
// (a sign, 4 bits of exponent, 3 of mantissa: multiples of 2^-9 up to 2^-6, then 8 to a power of two, at most 448; no infinity). A row of
// either operand, a token or an output, has one scale: max|x| / 448, 0 where that maximum is below FP8_SMALLEST, NaN where a value of the row
// is not finite. Its numbers are x (448 / max|x|) in float, rounded to the nearest E4M3 number, halves to the even one; where the scale is 0 or
// NaN they are 0. y is the sum of products of numbers, in float or better, times the scale of the row, times that of the output; then bias.
// Everything else is as in BF16 (ref: as in F32): plain matrices, trainable ones, arrays.
#define FP8_MAX 448.0f
#define FP8_SMALLEST 1e-30f      // 448 / max|x| stays finite
#define FP8_TILE 16              // rows and columns of E4M3 numbers lie in multiples of so many, filled up with zeros: tensor cores ask for it

// Whose an immutable matrix is: a transformer block's product, or all else (embedding, head, router), which bears less rounding.
enum weight_kind { WEIGHT_PLAIN, WEIGHT_BLOCK };

// What the caller will make, counted before it makes it (the model's *_need functions), by what it is for. A device with memory of its own
// reserves it at open, in one piece, or refuses with the numbers; from then on it asks the device for nothing more. All 0: not counted,
// each array is asked for.
enum backend_part { BACKEND_PART_WEIGHTS, BACKEND_PART_WORK, BACKEND_PART_HEAD, BACKEND_PART_CACHE, BACKEND_PART_TRAINING,
		   N_BACKEND_PARTS };

struct backend_count {
	uint64_t n_real, n_act;          // elements of all arrays
	uint64_t n_weight;               // elements of loaded matrices
	uint64_t n_block, fp8_bytes;     // of these, of WEIGHT_BLOCK; and what the same take in FP8
	uint64_t stored_bytes;           // of loaded matrices as the model's file has them; 0: not known
	uint64_t n_view;                 // elements of trainable ones
	uint64_t n_arrays;               // arrays and matrices
};

struct backend_need {
	struct backend_count parts[N_BACKEND_PARTS];
	uint64_t n_slots;                // longest list of cache slots of a layout
	uint32_t widest;                 // columns of the widest matrix
	uint64_t n_largest;              // elements of the largest loaded matrix, its parts stacked
	uint32_t vocab_size;             // V, the largest
};

// Where loaded matrices lie that memory has no room for, in pieces: each is made once, in order, and then asked for in every pass. Whoever
// opens a backend provides it (a file, say); the backend sees to it that what comes back is what was made. One thread at a time.
struct backend_shelf {
	void *shelf;
	size_t piece_bytes;              // of a piece at most; at least backend_piece_bytes() of the widest matrix
	uint32_t n_ahead;                // pieces it reads in advance
	uint64_t memory_bytes;           // it takes in memory for all this
	// A place of piece_bytes, aligned for vectors, to make the next piece in; NULL: what was made before cannot be kept (err).
	void *(*begin)(void *shelf, struct error *err);
	int (*append)(void *shelf, size_t n, struct error *err);    // its first n bytes are piece 0, 1, 2, ...
	// Piece `piece` as it was made, valid until the next call; `next` (n_next <= n_ahead) will be asked for soon, in that order. NULL: it
	// cannot be read (err).
	void *(*find)(void *shelf, uint32_t piece, const uint32_t *next, uint32_t n_next, struct error *err);
};
#define BACKEND_MAX_PIECE_ROWS 256       // rows of a matrix that stay together, at most, on any backend
#define BACKEND_PIECE_COLUMNS 64         // to whose multiples rows are padded, at most
#define BACKEND_MAX_AHEAD 8

#define BACKEND_MAX_HEAD_ROWS 1024       // no backend's head_rows is larger: what is counted before one is open

struct backend_options {
	uint32_t n_threads;              // 0 = all processors this process may use
	// Of products; AUTO = the fastest the device has for immutable weights, and for trainable ones float on the cpu, bf16 on cuda. BF16:
	// operands are rounded, sums are float, and so are arrays of struct real: parameters, their gradients, an optimizer's.
	enum backend_numeric numeric;
	// Device memory it may take (cuda); 0 = no such limit. Where the device has room for less than all matrices unpacked, those loaded by
	// weight_load_apart stay as the file has them (stored_bytes) and are unpacked for each product; else open refuses with the numbers.
	uint64_t memory_bytes;
	double memory_share;             // the same as a share of the device's memory; 0 = no such limit
	struct backend_need need;
	// What everything in the host's memory may take, the program itself included (cpu); 0 = no such limit. Where that is not enough for all
	// matrices packed, those loaded by weight_load_apart stay as the file has them (stored_bytes) and are packed anew for each product;
	// where it is not enough for that, they go to the shelf; without one, or where it does not help, open refuses with the numbers.
	uint64_t host_bytes;
	uint64_t program_bytes;          // taken already
	uint64_t loading_bytes;          // beside the matrices while they are loaded, and gone afterwards
	const struct backend_shelf *shelf;    // used until close; NULL = none
	uint32_t max_rows;               // largest T (or rows) any call will use: scratch is reserved for it at open
};

// How sequences lie in the packed batch. Arrays are host memory, copied by begin().
struct layout {
	uint32_t n_positions;            // T
	uint32_t n_sequences;
	const uint32_t *tokens;          // (T)
	const uint32_t *positions;       // (T) index within the sequence: 0, 1, 2, ...
	const uint32_t *starts;          // (n_sequences + 1) first row of each sequence; starts[n_sequences] = T
	// Only for cache_write and attention_cached (else NULL): the cache slot of every position of sequence s, from position 0 to that of
	// its last row, is slots[slot_starts[s]] .. slots[slot_starts[s + 1] - 1]. The batch holds rows of its last positions alone; what lies
	// before was written by an earlier pass, or belongs to another sequence of this one (a shared prefix).
	const uint32_t *slot_starts;     // (n_sequences + 1)
	const uint32_t *slots;
};

struct attention_shape {
	uint32_t n_heads, n_kv_heads, head_size;    // NH, NKV, D
	float scale;                                // usually 1/sqrt(D)
	bool bidirectional;                         // a row sees its whole sequence; else (causal) the rows up to itself. Never from a cache
	uint32_t window;                            // causal: the last so many rows, itself among them; 0 = all of them
	float soft_cap;                             // a score s, already scaled, becomes soft_cap tanh(s / soft_cap); 0 = none
};

enum gelu { GELU_ERF, GELU_TANH };       // x Phi(x), and its approximation by tanh

// What to read from one row of logits in the vocabulary sweep. Result pointers are host memory, complete when sweep() returns.
struct sweep_row {
	uint32_t top_k;                  // 0 = none; <= V
	uint32_t n_temperatures;
	const float *temperatures;
	uint32_t n_gather;               // ids in any order, repeats allowed
	const uint32_t *gather;
	bool want_entropy;
	bool want_tail;
	bool want_mean;
	uint32_t n_draws;                // 0 = none
	bool draw_tail;                  // the proposal leaves out the row's top-k ids
	double draw_tau;                 // proposal t(id) = e^(tau logit) / sum
	// (n_draws) ascending, in [0, 1): draw i is the lowest id whose t summed over ids up to it exceeds uniforms[i]
	const double *uniforms;
	// results
	bool not_finite;                 // some logit is NaN or infinite: nothing else is filled
	double max_logit;
	double entropy;                  // natural log, temperature 1
	double mean;                     // of the V logits
	double *lse;                     // (n_temperatures) of logits/T
	uint32_t *ids;                   // (top_k) descending, ties to the lower id
	double *logits;                  // (top_k)
	double *gathered;                // (n_gather)
	double tail_lse;                 // of the logits outside the top-k; -INFINITY where there are none
	uint32_t *drawn;                 // (n_draws) ascending; all UINT32_MAX when the proposal has no ids
	double *drawn_logits;            // (n_draws)
	double draw_lse;                 // ln t(id) = tau logit - draw_lse
};

// dlogits of one row: sum over terms of scale * softmax(logits / temperature), plus corrections added at ids (methods 2.6). A temperature may
// be INFINITY, its lse is then ln V: scale / V at every id.
struct softmax_grad_row {
	uint32_t n_terms;
	const float *temperatures;       // (n_terms)
	const double *lse;               // (n_terms)
	const double *scales;            // (n_terms)
	uint32_t n_corrections;
	const uint32_t *ids;
	const double *corrections;
};

struct adamw { double learning_rate, beta1, beta2, epsilon, weight_decay, grad_scale; uint64_t step; /* from 1 */ };

struct lion { double learning_rate, beta1, beta2, weight_decay, grad_scale; };

struct backend_ops {
	const char *name;                // "ref", "cpu", "cuda"
	uint32_t head_rows;              // rows of logits best held at once: a tile that stays in cache (cpu), that fills the device (cuda);
	                                 // at most BACKEND_MAX_HEAD_ROWS
	int (*open)(struct backend *be, const struct backend_options *options, struct error *err);
	void (*close)(struct backend *be);
	void (*sync)(struct backend *be);
	// Operations return before the device has done them: who has more for it to do gives it that before waiting for results.
	bool asynchronous;
	// A place in the work given so far; the wait until the device has come by the last one marked, whatever it was given since.
	void (*mark)(struct backend *be);
	void (*wait)(struct backend *be);
	// Whether the attention operations take heads of that shape, to be asked before anything is loaded: 0, or ERROR_UNSUPPORTED.
	int (*check_shape)(struct backend *be, const struct attention_shape *shape, struct error *err);

	// Memory. new returns NULL (and sets err) when the device has none left; arrays start zeroed; every free accepts NULL.
	// real_at/act_at are pointer arithmetic.
	struct real *(*real_new)(struct backend *be, size_t n, struct error *err);
	void (*real_free)(struct backend *be, struct real *x);
	struct real *(*real_at)(struct real *x, size_t i);
	struct act *(*act_new)(struct backend *be, size_t n, struct error *err);
	void (*act_free)(struct backend *be, struct act *x);
	struct act *(*act_at)(struct act *x, size_t i);
	void (*real_write)(struct backend *be, struct real *to, const float *from, size_t n);
	void (*real_read)(struct backend *be, double *to, const struct real *from, size_t n);     // implies sync
	void (*act_write)(struct backend *be, struct act *to, const float *from, size_t n);
	void (*act_read)(struct backend *be, double *to, const struct act *from, size_t n);       // implies sync
	void (*real_zero)(struct backend *be, struct real *x, size_t n);
	void (*real_copy)(struct backend *be, struct real *to, const struct real *from, size_t n);

	// Weights. load stacks the parts by rows (same column count; dtypes may differ) into an immutable matrix; a plain one is also usable
	// by embed, any by linear and linear_real. view makes a trainable matrix over a device array (n_rows, n_columns) that the caller owns; refresh after the array changed.
	struct weight *(*weight_load)(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts,
				      struct error *err);
	// The same for a matrix that memory has no room for (backend_keeps): it stays as stored, or goes to the shelf where the device has one
	// (memory_bytes, host_bytes). Same results.
	struct weight *(*weight_load_apart)(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts,
					    struct error *err);
	struct weight *(*weight_view)(struct backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err);
	void (*weight_refresh)(struct backend *be, struct weight *w);
	void (*weight_free)(struct backend *be, struct weight *w);

	// Forward. begin gives the layout that embed, rope and attention (and their backwards) use until the next begin.
	void (*begin)(struct backend *be, const struct layout *layout);
	void (*embed)(struct backend *be, struct real *x /*(T,C)*/, const struct weight *w /*(V,C)*/);
	// x += row `position` of the table (positions,C) (by_position), or its row 0.
	void (*embed_add)(struct backend *be, struct real *x /*(T,C)*/, const struct real *table, bool by_position, uint32_t C);
	void (*rmsnorm)(struct backend *be, struct act *y /*(rows,C)*/, const struct real *x /*(rows,C)*/, const struct real *gain /*(C)*/,
			float epsilon, uint32_t rows, uint32_t C);
	// (x - mean) / sqrt(variance + epsilon) gain + bias, to y and z or one of them (the other NULL); z may be x.
	void (*layernorm)(struct backend *be, struct act *y /*(rows,C)*/, struct real *z /*(rows,C)*/, const struct real *x /*(rows,C)*/,
			  const struct real *gain /*(C)*/, const struct real *bias /*(C)*/, float epsilon, uint32_t rows, uint32_t C);
	void (*linear)(struct backend *be, struct act *y /*(rows,N)*/, const struct act *x /*(rows,K)*/, const struct weight *w /*(N,K)*/,
		       const struct real *bias /*(N) or NULL*/, uint32_t rows);
	void (*linear_real)(struct backend *be, struct real *y /*(rows,N)*/, bool add, const struct act *x, const struct weight *w,
			    const struct real *bias /*(N) or NULL*/, uint32_t rows);
	void (*head_norm)(struct backend *be, struct act *y /*(T,W)*/, const struct act *x /*(T,W), may be y*/, const struct real *q_gain /*(D)*/,
			  const struct real *k_gain /*(D)*/, const struct attention_shape *shape, float epsilon);    // q and k heads; v copied
	void (*rope)(struct backend *be, struct act *qkv /*(T,W) in place*/, const struct real *cosine /*(positions,R/2)*/,
		     const struct real *sine, uint32_t R, const struct attention_shape *shape,
		     bool inverse);    // halves: (x[i], x[i + R/2]); from R on a head stays. inverse = backward
	void (*attention)(struct backend *be, struct act *y /*(T,NH*D)*/, struct real *lse /*(T,NH) or NULL*/, const struct act *qkv /*(T,W)*/,
			  const struct attention_shape *shape);    // within each sequence; query head h uses kv head h / (NH/NKV)
	// The same from a cache of keys and values, cache (slots, 2 NKV D): rows k then v. cache_write puts each row's where its slot says;
	// attention_cached then reads all slots of a sequence. Bit for bit what attention gives for the whole sequence.
	void (*cache_write)(struct backend *be, struct act *cache, const struct act *qkv /*(T,W)*/, const struct attention_shape *shape);
	void (*attention_cached)(struct backend *be, struct act *y /*(T,NH*D)*/, const struct act *qkv /*(T,W): q is read*/,
				 const struct act *cache, const struct attention_shape *shape);
	void (*swiglu)(struct backend *be, struct act *y /*(rows,F)*/, const struct act *gate_up /*(rows,2F): gate then up*/, uint32_t rows,
			uint32_t F);
	void (*geglu)(struct backend *be, struct act *y /*(rows,F)*/, const struct act *gate_up /*(rows,2F): gate then up*/, uint32_t rows,
		      uint32_t F);    // GELU_TANH of the gate, times up
	void (*gelu)(struct backend *be, struct act *y /*(rows,F), may be x*/, const struct act *x /*(rows,F)*/, enum gelu form, uint32_t rows,
		     uint32_t F);
	void (*widen)(struct backend *be, struct real *y, const struct act *x, size_t n);     // y = x
	void (*narrow)(struct backend *be, struct act *y, const struct real *x, size_t n);    // y = x, rounded
	void (*pick_rows)(struct backend *be, struct act *y /*(n,C)*/, const struct act *x /*(T,C)*/, const uint32_t *rows /*host (n)*/,
			  uint32_t n, uint32_t C);
	// x[rows[i]] += scales[i] y[i]; rows are distinct.
	void (*add_rows)(struct backend *be, struct real *x /*(T,C)*/, const struct real *y /*(n,C)*/, const uint32_t *rows /*host (n)*/,
			 const float *scales /*host (n)*/, uint32_t n, uint32_t C);
	void (*soft_cap)(struct backend *be, struct real *x /*(n) in place*/, float cap, size_t n);    // x = cap tanh(x / cap)
	void (*pick_columns)(struct backend *be, struct real *y /*(n,n_ids)*/, const struct real *x /*(n,V)*/,
			const uint32_t *ids /*host (n_ids)*/, uint32_t n, uint32_t n_ids, uint32_t V);
	// Several teachers' logits as one: y (+)= weight x, or, with lse (n) (of x, T = 1), weight e^(x - lse); y may be x when not adding.
	// mix_log ends a mean of probabilities: y = ln y, no less than ln 1e-38. What is not a number stays so: a NaN lse makes its row NaN.
	void (*mix)(struct backend *be, struct real *y /*(n,V)*/, bool add, const struct real *x /*(n,V)*/, double weight,
			const double *lse /*host (n) or NULL*/, uint32_t n, uint32_t V);
	void (*mix_log)(struct backend *be, struct real *y /*(n,V)*/, uint32_t n, uint32_t V);
	void (*sweep)(struct backend *be, const struct real *logits /*(n,V)*/, uint32_t n, uint32_t V, struct sweep_row *rows);
	// The same in two halves, so that the device has work while the host reads results: start returns at once, finish completes the rows
	// of the oldest start (after a failure: not_finite). At most two are under way, and meanwhile no sweep; the rows and all they point to
	// stay as they are until then. The logits may be overwritten by later operations: those come behind.
	void (*sweep_start)(struct backend *be, const struct real *logits /*(n,V)*/, uint32_t n, uint32_t V, struct sweep_row *rows);
	void (*sweep_finish)(struct backend *be);

	// Backward. d* of inputs are written unless "+=" is said; gradients of parameters are always +=.
	void (*embed_backward)(struct backend *be, struct real *dw /*(V,C) +=*/, const struct real *dx /*(T,C)*/, uint32_t C);
	void (*embed_add_backward)(struct backend *be, struct real *dtable /*+=*/, const struct real *dx /*(T,C)*/, bool by_position, uint32_t C);
	void (*rmsnorm_backward)(struct backend *be, struct real *dx /*(rows,C) +=*/, struct real *dgain /*(C) +=*/, const struct act *dy,
				 const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C);
	// dy and dz: of the two results, NULL where there was none. dx += unless it is dz, which is then replaced.
	void (*layernorm_backward)(struct backend *be, struct real *dx /*(rows,C)*/, struct real *dgain /*(C) +=*/, struct real *dbias /*(C) +=*/,
				   const struct act *dy, const struct real *dz, const struct real *x, const struct real *gain, float epsilon,
				   uint32_t rows, uint32_t C);
	void (*linear_backward)(struct backend *be, struct act *dx /*(rows,K) or NULL*/, struct real *dw /*(N,K) += or NULL*/,
			struct real *dbias /*(N) += or NULL*/,
				const struct act *dy /*(rows,N)*/, const struct act *x, const struct weight *w, uint32_t rows);
	void (*linear_real_backward)(struct backend *be, struct act *dx /*(rows,K) or NULL*/, struct real *dw /*(N,K) += or NULL*/,
				     struct real *dbias /*(N) += or NULL*/, const struct real *dy /*(rows,N)*/, const struct act *x,
				     const struct weight *w, uint32_t rows);
	void (*head_norm_backward)(struct backend *be, struct act *dx /*(T,W), may be dy*/, struct real *dq_gain, struct real *dk_gain,
			const struct act *dy,
				   const struct act *x, const struct real *q_gain, const struct real *k_gain, const struct attention_shape *shape, float epsilon);
	void (*attention_backward)(struct backend *be, struct act *dqkv /*(T,W)*/, const struct act *dy /*(T,NH*D)*/, const struct act *qkv,
				   const struct act *y, const struct real *lse, const struct attention_shape *shape);
	void (*swiglu_backward)(struct backend *be, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t rows,
			uint32_t F);
	void (*gelu_backward)(struct backend *be, struct act *dx /*may be dy*/, const struct act *dy, const struct act *x, enum gelu form,
			      uint32_t rows, uint32_t F);
	void (*put_rows)(struct backend *be, struct act *dx /*(T,C), rows not named are zeroed*/, const struct act *dy /*(n,C)*/,
			const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C);    // backward of pick_rows; rows are distinct
	void (*softmax_grad)(struct backend *be, struct real *logits /*(n,V) in: logits, out: dlogits*/, uint32_t n, uint32_t V,
			     const struct softmax_grad_row *rows);

	// Optimiser.
	double (*sum_squares)(struct backend *be, const struct real *x, size_t n);    // implies sync; fixed order
	void (*adamw)(struct backend *be, struct real *w, struct real *m, struct real *v, const struct real *g, size_t n, const struct adamw *a);
	// With g' = grad_scale g: w (1 - learning_rate weight_decay) - learning_rate sign(beta1 m + (1 - beta1) g'); then
	// m = beta2 m + (1 - beta2) g'. sign(0) = 0.
	void (*lion)(struct backend *be, struct real *w, struct real *m, const struct real *g, size_t n, const struct lion *l);
	// x becomes the nearest point of its grid: for each `group` columns of a row (group divides columns) scale = max|x| / (2^(bits-1) - 1),
	// x = scale * round(x / scale), halves to even. 2 <= bits <= 16.
	void (*fake_quantize)(struct backend *be, struct real *x /*(rows,columns)*/, uint32_t rows, uint32_t columns, uint32_t group,
			uint32_t bits);
};

struct backend {
	const struct backend_ops *ops;
	void *device;                    // the implementation's own state
	const char *numeric;             // "f64", "f32", "f32-fast" (longer sums), "bf16", "int8", "fp8"; ref: "int8-f64", "fp8-f64". Of a fingerprint
	const char *view_numeric;        // likewise of products with trainable matrices: what a student is trained in
	const char *description;         // "2 threads, AVX2" for logs and status
	const char *fallback;            // opened as "auto": why the better device was not taken; NULL when none was passed over
	uint64_t n_allocations;          // times arrays or scratch were asked for, of the device or of its reserve
	uint64_t memory_bytes;           // taken of the device's own memory now, work buffers included; 0 for a device without any
	uint64_t room;                   // bytes that loaded matrices may still take; UINT64_MAX: all have room
	uint32_t element_bytes;          // of a loaded matrix, where room is bounded
	uint64_t apart_bytes;            // of matrices on the shelf
	uint64_t stored_bytes;           // of matrices kept as the file has them
	enum device_fault fault;         // of the failure, where the device is known to be at fault
	bool stores;                     // what has no room is kept so; room is then what is left when all are
	bool reads_rows;                 // weight_load takes tensors without data, whose rows are read when they are packed
};

// name: "cpu", "cuda", "ref"; "auto" = cuda where a usable device is, else cpu. -EOPNOTSUPP when not built in or not usable.
int backend_open(const char *name, const struct backend_options *options, struct backend **ret_backend, struct error *err);
void backend_close(struct backend *be);        // NULL is fine
int backend_sync(struct backend *be, struct error *err);
int backend_check(const struct backend *be, struct error *err);      // the failure known so far; does not wait
// Whether a matrix of so many elements, of so many bytes as the file has it, has room in memory, packed; if so, the room is taken.
bool backend_keeps(struct backend *be, uint64_t n_elements, uint64_t stored_bytes);
uint64_t backend_fp8_bytes(uint64_t n_rows, uint64_t n_columns);     // of a matrix: E4M3 numbers in tiles, then a float for each row
uint64_t backend_matrix_bytes(uint64_t n_elements, uint32_t element_bytes);    // what it takes, no less
size_t backend_piece_bytes(uint32_t widest);   // what a shelf must hold in one piece: rows that stay together, padded, of the widest matrix
// For implementations: the first failure sticks.
void backend_fail(struct backend *be, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool backend_failed(const struct backend *be);
