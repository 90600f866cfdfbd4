// SPDX-License-Identifier: Apache-2.0
// CRC-32C, reflected polynomial 0x82f63b78: the SSE4.2 instruction where the processor has it, else eight bytes a step by table.
#include "common/crc32c.h"

#include <pthread.h>
#include <string.h>

#include "common/crc32c_internal.h"

#define POLYNOMIAL 0x82f63b78u

static uint32_t table[8][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_init(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t v = i;
		for (int bit = 0; bit < 8; bit++)
			v = v >> 1 ^ (v & 1 ? POLYNOMIAL : 0);
		table[0][i] = v;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int j = 1; j < 8; j++)
			table[j][i] = table[j - 1][i] >> 8 ^ table[0][table[j - 1][i] & 0xff];
}

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t n)
{
	const uint8_t *p = data;
	pthread_once(&table_once, table_init);
	crc = ~crc;
	for (; n >= 8; n -= 8, p += 8) {
		uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
		crc = table[7][low & 0xff] ^ table[6][low >> 8 & 0xff] ^ table[5][low >> 16 & 0xff] ^ table[4][low >> 24] ^
		      table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
	}
	while (n--)
		crc = crc >> 8 ^ table[0][(crc ^ *p++) & 0xff];
	return ~crc;
}

#ifdef __x86_64__
// The instruction takes three cycles but a new one can begin in each: three stretches side by side, put together afterwards.
#define LANE_BYTES 1024

static uint32_t lane_table[4][256];          // a state, byte by byte, to what it is LANE_BYTES zero bytes later
static pthread_once_t lane_once = PTHREAD_ONCE_INIT;

static void lane_init(void)
{
	static const uint8_t zeros[LANE_BYTES];
	for (int byte = 0; byte < 4; byte++)
		for (uint32_t v = 1; v < 256; v++) {
			uint32_t bit = v & -v, rest = v ^ bit;     // the step is linear: one bit anew, the others are known
			lane_table[byte][v] = rest ? lane_table[byte][bit] ^ lane_table[byte][rest]
				: ~crc32c_portable(~(v << 8 * byte), zeros, sizeof zeros);
		}
}

static uint32_t lane_shift(uint32_t state)
{
	return lane_table[0][state & 0xff] ^ lane_table[1][state >> 8 & 0xff] ^ lane_table[2][state >> 16 & 0xff] ^
		lane_table[3][state >> 24];
}

__attribute__((target("sse4.2")))
static uint32_t lanes_add(uint32_t state, const uint8_t *p)
{
	uint64_t a = state, b = 0, c = 0;
	for (size_t i = 0; i < LANE_BYTES; i += 8) {
		uint64_t words[3];
		memcpy(&words[0], p + i, 8);
		memcpy(&words[1], p + LANE_BYTES + i, 8);
		memcpy(&words[2], p + 2 * LANE_BYTES + i, 8);
		a = __builtin_ia32_crc32di(a, words[0]);
		b = __builtin_ia32_crc32di(b, words[1]);
		c = __builtin_ia32_crc32di(c, words[2]);
	}
	return lane_shift(lane_shift((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
}

__attribute__((target("sse4.2")))
uint32_t crc32c_sse42(uint32_t crc, const void *data, size_t n)
{
	const uint8_t *p = data;
	uint32_t tail = ~crc;
	if (n >= 3 * LANE_BYTES)
		pthread_once(&lane_once, lane_init);
	for (; n >= 3 * LANE_BYTES; n -= 3 * LANE_BYTES, p += 3 * LANE_BYTES)
		tail = lanes_add(tail, p);
	uint64_t state = tail;
	for (; n >= 8; n -= 8, p += 8) {
		uint64_t word;
		memcpy(&word, p, 8);
		state = __builtin_ia32_crc32di(state, word);
	}
	tail = (uint32_t)state;
	while (n--)
		tail = __builtin_ia32_crc32qi(tail, *p++);
	return ~tail;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t n)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("sse4.2"))
		return crc32c_sse42(crc, data, n);
#endif
	return crc32c_portable(crc, data, n);
}

// ---- checksums put together

static uint32_t powers[64];              // x to the 8 * 2^k: 2^k zero bytes
static pthread_once_t powers_once = PTHREAD_ONCE_INIT;

// Of two polynomials modulo the checksum's; the highest bit is x^0.
static uint32_t product(uint32_t a, uint32_t b)
{
	uint32_t p = 0;
	for (uint32_t bit = UINT32_C(1) << 31; bit; bit >>= 1) {
		p ^= a & bit ? b : 0;
		b = b >> 1 ^ (b & 1 ? POLYNOMIAL : 0);
	}
	return p;
}

static void powers_init(void)
{
	powers[0] = UINT32_C(1) << (31 - 8);
	for (int k = 1; k < 64; k++)
		powers[k] = product(powers[k - 1], powers[k - 1]);
}

uint32_t crc32c_join(uint32_t first, uint32_t second, uint64_t n)
{
	pthread_once(&powers_once, powers_init);
	for (int k = 0; n; k++, n >>= 1)
		first = n & 1 ? product(powers[k], first) : first;
	return first ^ second;
}
