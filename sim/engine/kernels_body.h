/* Body of the kernels, included once per instruction set by kernels.c with
 *   NAME(f)   the function's name for this set        TARGET    its compiler attribute
 *   WIDTH     bytes of a vector                       COLUMNS   weights of a row that fit its registers
 */

typedef uint16_t NAME(Lanes) __attribute__((vector_size(WIDTH), aligned(1), may_alias));

/* One bit for each of 64 spikes (bytes 0 or 1), the first one lowest; of the last few of an array where n < 64. */
TARGET INLINE uint64_t NAME(bits)(const uint8_t *x, int64_t n)
{
    uint8_t last[64];
    if (n < 64) {
        memset(last, 0, sizeof last);
        memcpy(last, x, (size_t)n);
        x = last;
    }
#if WIDTH == 64
    const __m512i bytes = _mm512_loadu_si512(x);
    return _mm512_test_epi8_mask(bytes, bytes);
#else
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t word;
        memcpy(&word, x + 8 * i, 8);
        bits |= (word * 0x0102040810204080u >> 56) << (8 * i); /* gathers the bytes' lowest bits in the top byte */
    }
    return bits;
#endif
}

/* Event lists: for every pixel the channels that spiked, in order. Returns the number of events. */
TARGET static int64_t NAME(list_events)(const uint8_t *x, int64_t channels, int64_t pixels, uint16_t *lists,
                                        int32_t *counts)
{
    int64_t events = 0;
    if (pixels == 1) { /* a dense layer: one pixel with many channels */
        for (int64_t c = 0; c < channels; c += 64) {
            uint64_t bits = NAME(bits)(x + c, channels - c);
            const int n = __builtin_popcountll(bits);
            for (int done = 0; done < n; done += 4) /* by fours: a length that varies costs a mispredicted branch */
                for (int k = 0; k < 4; k++, bits &= bits - 1)
                    lists[events + done + k] = (uint16_t)(c + __builtin_ctzll(bits | 1ull << 63));
            events += n;
        }
        counts[0] = (int32_t)events;
        return events;
    }
    memset(counts, 0, (size_t)pixels * sizeof *counts);
    for (int64_t c = 0; c < channels; c++, x += pixels)
        for (int64_t p = 0; p < pixels; p += 64) {
            uint64_t bits = NAME(bits)(x + p, pixels - p);
            events += __builtin_popcountll(bits);
            for (; bits; bits &= bits - 1) {
                int64_t at = p + __builtin_ctzll(bits);
                lists[at * channels + counts[at]++] = (uint16_t)c;
            }
        }
    return events;
}

/* Add up n rows of biased weights (weight + 128, a byte each): `out` int32 [columns], exact.
 *
 * A vector of bytes is read as 16-bit lanes, low byte + 256 high byte. `all` adds the lanes as they are, modulo 2^16;
 * `high` adds the high bytes; both give back each byte's own sum, since no sum of CHUNK bytes reaches 2^16. That is
 * three operations for WIDTH additions, and no widening. The packing puts weights 0..31 of a group into its low bytes
 * and 32..63 into its high bytes.
 */
TARGET INLINE void NAME(add_rows)(const uint8_t *weight, const uint32_t *rows, int64_t n, const int vectors,
                                  int32_t *out)
{
    enum { HALF = WIDTH / 2, PER_GROUP = LANES / WIDTH };
    int64_t done = 0;
    do {
        int64_t end = n - done < CHUNK ? n : done + CHUNK;
        NAME(Lanes) all[16], high[16];
        for (int g = 0; g < vectors; g++) all[g] = high[g] = (NAME(Lanes)){0};
        for (int64_t i = done; i < end; i++) {
            const uint8_t *row = weight + rows[i];
#pragma GCC unroll 16
            for (int g = 0; g < vectors; g++) {
                NAME(Lanes) bytes = *(const NAME(Lanes) *)(row + g * WIDTH);
                all[g] += bytes;
                high[g] += bytes >> 8;
            }
        }
        int32_t bias = 128 * (int32_t)(end - done);
#pragma GCC unroll 16
        for (int g = 0; g < vectors; g++) {
            uint16_t low[HALF], top[HALF];
            NAME(Lanes) rest = all[g] - (high[g] << 8);
            memcpy(low, &rest, WIDTH);
            memcpy(top, &high[g], WIDTH);
            int32_t *to = out + g / PER_GROUP * LANES + g % PER_GROUP * HALF;
            if (done)
                for (int i = 0; i < HALF; i++) to[i] += low[i] - bias, to[i + LANES / 2] += top[i] - bias;
            else
                for (int i = 0; i < HALF; i++) to[i] = low[i] - bias, to[i + LANES / 2] = top[i] - bias;
        }
        done = end;
    } while (done < n);
}

/* The rows that arrive at one output pixel: one per event under one of the kernel's taps. */
TARGET INLINE int64_t NAME(collect_rows)(const Sums *s, const int32_t *source, const uint16_t *lists,
                                         const int32_t *counts, uint32_t *rows)
{
    const uint32_t channels = (uint32_t)s->channels, block = (uint32_t)s->block;
    int64_t n = 0;
    for (int64_t tap = 0; tap < s->taps; tap++) {
        if (source[tap] < 0) continue; /* padding */
        const uint16_t *list = lists + source[tap] * s->channels;
        const int32_t count = counts[source[tap]];
        const uint32_t base = (uint32_t)tap * channels;
        for (int32_t i = 0; i < count; i += 16) /* whole sixteens: a length that varies costs a mispredicted branch */
            for (int k = 0; k < 16; k++) rows[n + i + k] = (base + list[i + k]) * block;
        n += count;
    }
    return n;
}

/* Transpose 16 x 16 numbers: exchange halves of pairs of rows 8, 4, 2 and 1 apart. */
TARGET INLINE void NAME(transpose)(Row *r)
{
    Row a, b;
#define EXCHANGE(gap, ...) \
    for (int i = 0; i < TILE; i++) \
        if (!(i & gap)) a = r[i], b = r[i + gap], r[i] = SHUFFLE(a, b, LOW_##gap), r[i + gap] = SHUFFLE(a, b, HIGH_##gap);
#define LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#pragma GCC unroll 16
    EXCHANGE(8)
#pragma GCC unroll 16
    EXCHANGE(4)
#pragma GCC unroll 16
    EXCHANGE(2)
#pragma GCC unroll 16
    EXCHANGE(1)
#undef EXCHANGE
}

/* Write a tile: sums [pixels][block] to drive [targets][pixels_out], times 2^shift, in place of its values or onto them. */
TARGET INLINE void NAME(write_tile)(const int32_t *tile, const Sums *s, int64_t pixels, int64_t targets, int32_t *drive)
{
    const int shift = (int)s->shift, add = s->add != 0;
    const int64_t pixels_out = s->pixels_out;
    if (pixels_out == 1) {
        if (add) for (int64_t c = 0; c < targets; c++) drive[c] += (int32_t)((uint32_t)tile[c] << shift);
        else for (int64_t c = 0; c < targets; c++) drive[c] = (int32_t)((uint32_t)tile[c] << shift);
        return;
    }
    for (int64_t c = 0; c < targets; c += TILE) {
        const int64_t n = targets - c < TILE ? targets - c : TILE;
        for (int64_t first = 0; first < pixels; first += TILE) {
            Row rows[TILE];
#pragma GCC unroll 16
            for (int p = 0; p < TILE; p++) rows[p] = *(const Row *)(tile + (first + p) * s->block + c);
            NAME(transpose)(rows);
            const int64_t left = pixels - first;
            int32_t *to = drive + c * pixels_out + first;
            for (int64_t i = 0; i < n; i++, to += pixels_out) {
                Row row = rows[i] << shift;
                if (left >= TILE && add) *(Row *)to += row;
                else if (left >= TILE) *(Row *)to = row;
                else for (int64_t p = 0; p < left; p++) to[p] = (add ? to[p] : 0) + row[p];
            }
        }
    }
}

/* One image: event lists of all its pixels to the drive of `targets` neurons at every output pixel. */
TARGET static void NAME(sum_image)(const Sums *s, const uint8_t *weight, int64_t targets, const uint16_t *lists,
                                   const int32_t *counts, uint32_t *rows, int32_t *tile, int32_t *drive)
{
    const int64_t block = s->block, span = PIXELS(block);
    for (int64_t first = 0; first < s->pixels_out; first += span) {
        int64_t pixels = s->pixels_out - first < span ? s->pixels_out - first : span;
        for (int64_t p = 0; p < pixels; p++) {
            int64_t n = NAME(collect_rows)(s, s->source + (first + p) * s->taps, lists, counts, rows);
            int32_t *out = tile + p * block;
            if (!n) {
                memset(out, 0, (size_t)block * sizeof *out);
                continue;
            }
            for (int64_t column = 0; column < block; column += COLUMNS) {
                int64_t left = block - column < COLUMNS ? block - column : COLUMNS;
                const uint8_t *from = weight + column;
                switch (left / LANES) {
                case 1: NAME(add_rows)(from, rows, n, 1 * LANES / WIDTH, out + column); break;
                case 2: NAME(add_rows)(from, rows, n, (COLUMNS < 128 ? COLUMNS : 128) / WIDTH, out + column); break;
                case 4: NAME(add_rows)(from, rows, n, (COLUMNS < 256 ? COLUMNS : 256) / WIDTH, out + column); break;
                default: NAME(add_rows)(from, rows, n, COLUMNS / WIDTH, out + column); break;
                }
            }
        }
        NAME(write_tile)(tile, s, pixels, targets, drive + first);
    }
}

/* All images of a block; 0 where memory ran out. */
TARGET static int NAME(event_sums)(Sums *s)
{
    const int64_t images = s->steps * s->samples, size = s->pixels_in * s->channels, block = s->block;
    int64_t together = LIST_BYTES / (2 * size + 4 * s->pixels_in);
    together = together < 1 ? 1 : together > images ? images : together;
    uint16_t *lists = malloc((size_t)(together * size + 16) * sizeof *lists); /* read in sixteens */
    int32_t *counts = malloc((size_t)(together * s->pixels_in) * sizeof *counts);
    uint32_t *rows = malloc((size_t)(s->taps * s->channels + 16) * sizeof *rows);
    int32_t *tile = malloc((size_t)(PIXELS(block) * block) * sizeof *tile);
    const int done = lists && counts && rows && tile;
    for (int64_t first = 0; done && first < images; first += together) {
        int64_t here = images - first < together ? images - first : together;
        for (int64_t i = 0; i < here; i++) {
            const uint8_t *x = s->x + (first + i) / s->samples * s->x_step + (first + i) % s->samples * s->x_sample;
            s->events += NAME(list_events)(x, s->channels, s->pixels_in, lists + i * size, counts + i * s->pixels_in);
        }
        for (int64_t target = 0; target < s->targets; target += block) { /* weights of one block stay in the cache */
            const uint8_t *weight = s->weight + target * s->taps * s->channels;
            int64_t targets = s->targets - target < block ? s->targets - target : block;
            for (int64_t i = 0; i < here; i++) {
                int32_t *drive = s->drive + (first + i) / s->samples * s->drive_step
                                 + (first + i) % s->samples * s->drive_sample + target * s->pixels_out;
                NAME(sum_image)(s, weight, targets, lists + i * size, counts + i * s->pixels_in, rows, tile, drive);
            }
        }
    }
    free(lists);
    free(counts);
    free(rows);
    free(tile);
    return done;
}

/* trunc(x keep / 4096) for |x| <= 2^29: x = 4096 high + low, 0 <= low, and high keep needs no rounding. Adding 4095
 * before the shift rounds up, which is toward zero for a negative x. */
TARGET INLINE int32_t NAME(decay)(int32_t x, int32_t keep)
{
    return (x >> 12) * keep + (((x & 4095) * keep + ((x >> 31) & 4095)) >> 12);
}

enum { NAME(BLOCK) = 1024 }; /* neurons whose state stays in the first-level cache */

/* All steps of up to BLOCK neurons. `guarded`: wrap, saturate and count. Otherwise the state is only watched; returns 0
 * if it has left its width, and the caller starts again from the state before. */
TARGET INLINE int NAME(steps)(Neurons *a, int64_t sample, int64_t first, int64_t n, const int memory, const int leak,
                              const int guarded)
{
    int32_t *restrict u = memory ? a->u + sample * a->neurons + first : NULL;
    int32_t *restrict v = a->v + sample * a->neurons + first;
    const int32_t *restrict bias = a->bias + first;
    const int32_t keep_u = (int32_t)a->keep_u, keep_v = (int32_t)a->keep_v, threshold = (int32_t)a->threshold;
    const int32_t zero = (int32_t)a->zero, amount = (int32_t)a->amount, limit = (int32_t)a->limit;
    const uint32_t mask = 2 * (uint32_t)limit - 1;
    const int32_t v_max = limit - 1;
    uint8_t unused[NAME(BLOCK)];
    for (int64_t t = 0; t < a->steps; t++) {
        const int32_t *restrict drive = a->drive + t * a->drive_step + sample * a->drive_sample + first;
        uint8_t *restrict spikes = a->spikes ? a->spikes + t * a->spikes_step + sample * a->spikes_sample + first : unused;
        int32_t wraps = 0, saturations = 0, most = 0, least = 0;
        for (int64_t i = 0; i < n; i++) {
            int32_t new_u = drive[i] + (memory ? NAME(decay)(u[i], keep_u) : 0);
            if (guarded) {
                int32_t exact = new_u;
                new_u = limit - (int32_t)(((uint32_t)limit - (uint32_t)exact) & mask);
                wraps += new_u != exact;
            } else {
                most = new_u > most ? new_u : most;
                least = new_u < least ? new_u : least;
            }
            if (memory) u[i] = new_u;
            int32_t new_v = (int32_t)((uint32_t)(leak ? NAME(decay)(v[i], keep_v) : v[i]) + (uint32_t)new_u
                                      + (uint32_t)bias[i]);
            if (guarded) {
                int32_t exact = new_v;
                new_v = exact > v_max ? v_max : exact;
                new_v = new_v < -v_max ? -v_max : new_v;
                saturations += new_v != exact;
            } else {
                most = new_v > most ? new_v : most;
                least = new_v < least ? new_v : least;
            }
            int32_t fired = -(new_v > threshold);
            spikes[i] = (uint8_t)(fired & 1);
            v[i] = (int32_t)((uint32_t)new_v - (uint32_t)(fired & ((new_v & zero) | amount)));
        }
        if (!guarded && (most > v_max || least < -v_max)) return 0; /* u may reach limit; too careful by one */
        a->wraps += wraps;
        a->saturations += saturations;
        if (memory && a->v_trace) {
            int64_t at = t * a->trace_step + sample * a->trace_sample + first;
            for (int64_t i = 0; i < n; i++) {
                a->current_trace[at + i] = drive[i];
                a->u_trace[at + i] = u[i];
                a->v_trace[at + i] = v[i];
            }
        }
    }
    return 1;
}

TARGET INLINE void NAME(block_steps)(Neurons *a, int64_t sample, int64_t first, int64_t n, const int memory,
                                     const int leak)
{
    int32_t *u = memory ? a->u + sample * a->neurons + first : NULL, *v = a->v + sample * a->neurons + first;
    int32_t u_before[NAME(BLOCK)], v_before[NAME(BLOCK)];
    if (memory) memcpy(u_before, u, (size_t)n * sizeof *u);
    memcpy(v_before, v, (size_t)n * sizeof *v);
    if (NAME(steps)(a, sample, first, n, memory, leak, 0)) return;
    if (memory) memcpy(u, u_before, (size_t)n * sizeof *u);
    memcpy(v, v_before, (size_t)n * sizeof *v);
    NAME(steps)(a, sample, first, n, memory, leak, 1);
}

TARGET static void NAME(neuron_steps)(Neurons *a)
{
    for (int64_t sample = 0; sample < a->samples; sample++)
        for (int64_t first = 0; first < a->neurons; first += NAME(BLOCK)) {
            int64_t n = a->neurons - first < NAME(BLOCK) ? a->neurons - first : NAME(BLOCK);
            if (a->u && a->keep_v != 4096) NAME(block_steps)(a, sample, first, n, 1, 1);
            else if (a->u) NAME(block_steps)(a, sample, first, n, 1, 0);
            else if (a->keep_v != 4096) NAME(block_steps)(a, sample, first, n, 0, 1);
            else NAME(block_steps)(a, sample, first, n, 0, 0);
        }
}
