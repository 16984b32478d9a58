/* Body of the kernels, included once per instruction set by kernels.c with
 *   NAME(f)   the function's name for this set        TARGET    its compiler attribute
 *   WIDTH     bytes of a vector                       COLUMNS   weights of a row that fit its registers
 */

typedef uint16_t NAME(Lanes) __attribute__((vector_size(WIDTH), aligned(1), may_alias));
typedef int32_t NAME(Ints) __attribute__((vector_size(WIDTH), aligned(4), may_alias));
typedef uint32_t NAME(Words) __attribute__((vector_size(WIDTH), aligned(4), may_alias));
typedef uint8_t NAME(Few) __attribute__((vector_size(WIDTH / 4), aligned(1), may_alias)); /* as many as Ints has */

/* One bit for each of 64 spikes (bytes that are not 0), the first one lowest; of the last few of an array where n < 64. */
TARGET INLINE uint64_t NAME(bits)(const uint8_t *x, int64_t n)
{
#if WIDTH == 64
    const __m512i bytes = _mm512_maskz_loadu_epi8(n < 64 ? (1ull << n) - 1 : ~0ull, x);
    return _mm512_test_epi8_mask(bytes, bytes);
#else
    uint8_t last[64];
    if (n < 64) {
        memset(last, 0, sizeof last);
        memcpy(last, x, (size_t)n);
        x = last;
    }
    uint64_t bits = 0;
#if WIDTH == 32
    for (int i = 0; i < 2; i++) {
        const __m256i silent = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(x + 32 * i)), _mm256_setzero_si256());
        bits |= (uint64_t)(uint32_t)~_mm256_movemask_epi8(silent) << (32 * i);
    }
#else
    for (int i = 0; i < 8; i++) {
        const uint64_t most = 0x7f7f7f7f7f7f7f7fu;
        uint64_t word;
        memcpy(&word, x + 8 * i, 8);
        word = (((word & most) + most) | word) >> 7 & 0x0101010101010101u;
        bits |= (word * 0x0102040810204080u >> 56) << (8 * i); /* gathers the bytes' lowest bits in the top byte */
    }
#endif
    return bits;
#endif
}

#if WIDTH == 64
/* Transpose 64 x 64 bits, bit j of word i: exchange blocks of 32, 16, 8 (between registers), 4, 2 and 1 bits. */
TARGET INLINE void NAME(transpose_bits)(uint64_t *words)
{
    __m512i r[8];
    for (int i = 0; i < 8; i++) r[i] = _mm512_loadu_si512(words + 8 * i);
#define BETWEEN(gap, mask) \
    for (int i = 0; i < 8; i++) \
        if (!(8 * i & gap)) { \
            __m512i t = _mm512_xor_si512(_mm512_srli_epi64(r[i], gap), r[i + gap / 8]); \
            t = _mm512_and_si512(t, _mm512_set1_epi64(mask)); \
            r[i + gap / 8] = _mm512_xor_si512(r[i + gap / 8], t); \
            r[i] = _mm512_xor_si512(r[i], _mm512_slli_epi64(t, gap)); \
        }
#define WITHIN(gap, mask, lower, swap) \
    for (int i = 0; i < 8; i++) { \
        __m512i t = _mm512_xor_si512(_mm512_srli_epi64(r[i], gap), swap(r[i])); \
        t = _mm512_maskz_and_epi64(lower, t, _mm512_set1_epi64(mask)); \
        r[i] = _mm512_ternarylogic_epi64(r[i], _mm512_slli_epi64(t, gap), swap(t), 0x96); \
    }
#define SWAP_4(x) _mm512_shuffle_i64x2(x, x, 0x4e)
#define SWAP_2(x) _mm512_permutex_epi64(x, 0x4e)
#define SWAP_1(x) _mm512_permutex_epi64(x, 0xb1)
    BETWEEN(32, 0x00000000ffffffff)
    BETWEEN(16, 0x0000ffff0000ffff)
    BETWEEN(8, 0x00ff00ff00ff00ff)
    WITHIN(4, 0x0f0f0f0f0f0f0f0f, 0x0f, SWAP_4)
    WITHIN(2, 0x3333333333333333, 0x33, SWAP_2)
    WITHIN(1, 0x5555555555555555, 0x55, SWAP_1)
    for (int i = 0; i < 8; i++) _mm512_storeu_si512(words + 8 * i, r[i]);
}

/* Append the places of the set bits, times `unit`, from `first` on: writes whole sixteens. Returns how many. */
TARGET INLINE int64_t NAME(append)(uint64_t bits, uint32_t first, uint32_t unit, const int vbmi2, uint32_t *list)
{
    const __m512i start = _mm512_set1_epi32((int)(first * unit)), each = _mm512_set1_epi32((int)unit);
    if (vbmi2) { /* all places at once, as bytes; rarely more than sixteen */
        const int64_t n = __builtin_popcountll(bits);
        __m512i places;
        /* As a function of the compiler's it would need a copy of all that is here: not all machines have it. */
        __asm__("vpcompressb %1, %0 %{%2%}%{z%}"
                : "=v"(places) : "v"(_mm512_load_si512(PLACES)), "Yk"((__mmask64)bits));
#define SIXTEEN(i) \
    _mm512_storeu_si512(list + 16 * i, _mm512_add_epi32(start, _mm512_mullo_epi32(each, _mm512_cvtepu8_epi32( \
                                                                  _mm512_extracti32x4_epi32(places, i)))));
        SIXTEEN(0)
        if (n > 16) {
            SIXTEEN(1)
            if (n > 32) {
                SIXTEEN(2)
                SIXTEEN(3)
            }
        }
#undef SIXTEEN
        return n;
    }
    const __m512i sixteen = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i all = _mm512_add_epi32(start, _mm512_mullo_epi32(sixteen, each));
    uint32_t *to = list;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, bits >>= 16, all = _mm512_add_epi32(all, _mm512_slli_epi32(each, 4))) {
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)bits, all));
        to += __builtin_popcountll(bits & 0xffff);
    }
    return to - list;
}
#endif

#if WIDTH == 64
/* One bit per channel for every pixel: [pixels][groups of 64 channels]. */
TARGET static void NAME(list_bits)(const uint8_t *x, int64_t channels, int64_t pixels, uint64_t *bits)
{
    const int64_t groups = (channels + 63) / 64;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t lines = channels - 64 * g < 64 ? channels - 64 * g : 64;
        if (pixels == 1) bits[g] = NAME(bits)(x + 64 * g, lines);
        else for (int64_t p = 0; p < pixels; p += 64) {
            const int64_t left = pixels - p < 64 ? pixels - p : 64;
            uint64_t words[64];
            for (int64_t i = 0; i < lines; i++) words[i] = NAME(bits)(x + (64 * g + i) * pixels + p, left);
            for (int64_t i = lines; i < 64; i++) words[i] = 0;
            NAME(transpose_bits)(words);
            for (int64_t i = 0; i < left; i++) bits[(p + i) * groups + g] = words[i];
        }
    }
}
#endif

/* Event lists: for every pixel the channels that spiked, in order, times `unit`. */
TARGET static void NAME(list_events)(const uint8_t *x, int64_t channels, int64_t pixels, uint32_t unit, int vbmi2,
                                     uint64_t *bits, uint32_t *lists, int32_t *counts)
{
#if WIDTH == 64
    NAME(list_bits)(x, channels, pixels, bits);
    for (int64_t p = 0; p < pixels; p++, lists += channels + SPARE) {
        int64_t n = 0;
        for (int64_t c = 0; c < channels; c += 64) n += NAME(append)(*bits++, (uint32_t)c, unit, vbmi2, lists + n);
        counts[p] = (int32_t)n;
    }
#else
    (void)bits;
    (void)vbmi2;
    if (pixels == 1) { /* a dense layer: one pixel with many channels */
        int64_t events = 0;
        for (int64_t c = 0; c < channels; c += 64) {
            uint64_t word = NAME(bits)(x + c, channels - c);
            const int n = __builtin_popcountll(word);
            for (int done = 0; done < n; done += 4) /* by fours: a length that varies costs a mispredicted branch */
                for (int k = 0; k < 4; k++, word &= word - 1)
                    lists[events + done + k] = (uint32_t)(c + __builtin_ctzll(word | 1ull << 63)) * unit;
            events += n;
        }
        counts[0] = (int32_t)events;
        return;
    }
    memset(counts, 0, (size_t)pixels * sizeof *counts);
    for (int64_t c = 0; c < channels; c++, x += pixels)
        for (int64_t p = 0; p < pixels; p += 64)
            for (uint64_t word = NAME(bits)(x + p, pixels - p); word; word &= word - 1) {
                const int64_t at = p + __builtin_ctzll(word);
                lists[at * (channels + SPARE) + counts[at]++] = (uint32_t)c * unit;
            }
#endif
}

/* 16-bit lanes, as integers of 32 bits, less `bias`, times 2^shift: in place of `out` or onto it. */
TARGET INLINE void NAME(widen)(NAME(Lanes) lanes, int32_t bias, int shift, int add, int32_t *out)
{
    enum { HALF = WIDTH / 2 };
#if WIDTH == 64
    const __m512i off = _mm512_set1_epi32(bias);
    for (int i = 0; i < 2; i++) {
        const __m256i half = i ? _mm512_extracti64x4_epi64((__m512i)lanes, 1) : _mm512_castsi512_si256((__m512i)lanes);
        __m512i sum = _mm512_sll_epi32(_mm512_sub_epi32(_mm512_cvtepu16_epi32(half), off), _mm_cvtsi32_si128(shift));
        if (add) sum = _mm512_add_epi32(sum, _mm512_loadu_si512(out + 16 * i));
        _mm512_storeu_si512(out + 16 * i, sum);
    }
#else
    uint16_t values[HALF];
    memcpy(values, &lanes, WIDTH);
    if (add) for (int i = 0; i < HALF; i++) out[i] += (int32_t)((uint32_t)(values[i] - bias) << shift);
    else for (int i = 0; i < HALF; i++) out[i] = (int32_t)((uint32_t)(values[i] - bias) << shift);
#endif
}

/* Add up n rows of biased weights (weight + 128, a byte each), exact, times 2^shift: in place of `out` or onto it.
 *
 * A vector of bytes is read as 16-bit lanes, low byte + 256 high byte. `all` adds the lanes as they are, modulo 2^16;
 * `high` adds the high bytes; both give back each byte's own sum, since no sum of CHUNK bytes reaches 2^16. That is
 * three operations for WIDTH additions, and no widening. The packing puts weights 0..31 of a group into its low bytes
 * and 32..63 into its high bytes.
 */
TARGET INLINE void NAME(add_rows)(const uint8_t *weight, const uint32_t *rows, int64_t n, const int vectors, int shift,
                                  int add, int32_t *out)
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
#if WIDTH == 64
                __asm__("" : "+v"(bytes)); /* loaded once, not for either sum */
#endif
                all[g] += bytes;
                high[g] += bytes >> 8;
            }
        }
        int32_t bias = 128 * (int32_t)(end - done);
#pragma GCC unroll 16
        for (int g = 0; g < vectors; g++) {
            int32_t *to = out + g / PER_GROUP * LANES + g % PER_GROUP * HALF;
            NAME(widen)(all[g] - (high[g] << 8), bias, shift, add || done, to);
            NAME(widen)(high[g], bias, shift, add || done, to + LANES / 2);
        }
        done = end;
    } while (done < n);
}

/* The rows that arrive at one output pixel: one per event under one of the kernel's taps. */
TARGET INLINE int64_t NAME(collect_rows)(const Source *s, const int32_t *under, const uint32_t *lists,
                                         const int32_t *counts, uint32_t per_tap, uint32_t *rows)
{
    int64_t n = 0;
    for (int64_t tap = 0; tap < s->taps; tap++) {
        const uint32_t *list = lists + under[tap] * (s->channels + SPARE);
        const int32_t count = counts[under[tap]];
        const uint32_t base = (uint32_t)tap * per_tap;
        int32_t i = 0;
        do { /* whole sixteens, even of none: a branch that is hard to foretell costs more */
#pragma GCC unroll 8
            for (int k = 0; k < SPARE; k += WIDTH / 4)
                *(NAME(Words) *)(rows + n + i + k) = *(const NAME(Words) *)(list + i + k) + base;
        } while ((i += SPARE) < count);
        n += count;
    }
    return n;
}

/* What one connection adds to a block of targets at one output pixel; in place of `out` if not `add`. */
TARGET static void NAME(sum_rows)(const Source *s, const uint8_t *weight, int64_t block, int64_t pixel,
                                  const uint32_t *lists, const int32_t *counts, uint32_t *rows, int add, int32_t *out)
{
    const int32_t *under = s->under + pixel * s->taps;
    const uint32_t *events = rows;
    int64_t n;
    if (s->taps > 1) n = NAME(collect_rows)(s, under, lists, counts, (uint32_t)(s->channels * block), rows);
    else events = lists + *under * (s->channels + SPARE), n = counts[*under]; /* a list of rows already */
    if (!n) {
        if (!add) memset(out, 0, (size_t)block * sizeof *out);
        return;
    }
    const int shift = (int)s->shift;
    for (int64_t column = 0; column < block; column += COLUMNS) {
        const uint8_t *from = weight + column;
        int32_t *to = out + column;
        switch ((block - column < COLUMNS ? block - column : COLUMNS) / LANES) {
        case 1: NAME(add_rows)(from, events, n, 1 * LANES / WIDTH, shift, add, to); break;
        case 2: NAME(add_rows)(from, events, n, (COLUMNS < 128 ? COLUMNS : 128) / WIDTH, shift, add, to); break;
        default: NAME(add_rows)(from, events, n, COLUMNS / WIDTH, shift, add, to); break;
        }
    }
}

#if WIDTH == 32
/* multiply() for any bytes, whose products need all 16 bits: two of them are added up in 32. */
TARGET static void NAME(multiply_graded)(const uint8_t *const *rows, const int32_t *const *under, int64_t taps,
                                         int64_t quads, int64_t stride, const int8_t *factors, int64_t block,
                                         int32_t *out)
{
    for (int r = 0; r < TOGETHER; r += 2)
        for (int g = 0; g < LANES / 4; g += 4) {
            __m256i sums[2][4];
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) sums[i][j] = _mm256_setzero_si256();
            for (int64_t tap = 0; tap < taps; tap++)
                for (int64_t q = 0; q < quads; q++) {
                    const int8_t *from = factors + (tap * quads + q) * 4 * block + 16 * g;
                    __m256i x[2];
#pragma GCC unroll 2
                    for (int i = 0; i < 2; i++) {
                        int32_t four;
                        memcpy(&four, rows[r + i] + under[r + i][tap] * stride + 4 * q, 4);
                        x[i] = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
                    }
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++) {
                        const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(from + 16 * j)));
                        for (int i = 0; i < 2; i++)
                            sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_madd_epi16(x[i], w));
                    }
                }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) {
                    int32_t pairs[8];
                    _mm256_storeu_si256((__m256i *)pairs, sums[i][j]);
                    for (int k = 0; k < 4; k++) out[(r + i) * LANES + 4 * (g + j) + k] = pairs[2 * k] + pairs[2 * k + 1];
                }
        }
}
#endif

/* Products of `TOGETHER` rows of bytes (0 or 1, but where `graded`) and LANES columns of weights, four bytes of each at
 * a time: `out` int32 [TOGETHER][LANES]. factors: [taps][quads][block][4], from the first of these columns on. */
TARGET static void NAME(multiply)(const uint8_t *const *rows, const int32_t *const *under, int64_t taps, int64_t quads,
                                  int64_t stride, const int8_t *factors, int64_t block, int64_t graded, int32_t *out)
{
#if WIDTH == 32
    if (graded) {
        NAME(multiply_graded)(rows, under, taps, quads, stride, factors, block, out);
        return;
    }
#else
    (void)graded;
#endif
#if WIDTH == 64
    __m512i sums[TOGETHER][4];
    for (int r = 0; r < TOGETHER; r++)
        for (int g = 0; g < 4; g++) sums[r][g] = _mm512_setzero_si512();
    for (int64_t tap = 0; tap < taps; tap++) {
        const uint8_t *x[TOGETHER];
        for (int r = 0; r < TOGETHER; r++) x[r] = rows[r] + under[r][tap] * stride;
        for (int64_t q = 0; q < quads; q++, factors += 4 * block) {
            __m512i w[4];
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) w[g] = _mm512_loadu_si512(factors + 64 * g);
#pragma GCC unroll 8
            for (int r = 0; r < TOGETHER; r++) {
                int32_t four;
                memcpy(&four, x[r] + 4 * q, 4);
                const __m512i spread = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int g = 0; g < 4; g++) sums[r][g] = _mm512_dpbusd_epi32(sums[r][g], spread, w[g]);
            }
        }
    }
    for (int r = 0; r < TOGETHER; r++)
        for (int g = 0; g < 4; g++) _mm512_storeu_si512(out + r * LANES + 16 * g, sums[r][g]);
#elif WIDTH == 32
    const __m256i ones = _mm256_set1_epi16(1);
    memset(out, 0, TOGETHER * LANES * sizeof *out);
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t first = 0; first < quads; first += 64) { /* two products of at most 128 a quad: 64 stay below 2^15 */
            const int64_t n = quads - first < 64 ? quads - first : 64;
            const int8_t *from = factors + (tap * quads + first) * 4 * block;
            for (int r = 0; r < TOGETHER; r += 3)
                for (int g = 0; g < LANES / 8; g += 4) {
                    __m256i sums[3][4];
                    const uint8_t *x[3];
#pragma GCC unroll 3
                    for (int i = 0; i < 3; i++) {
                        x[i] = rows[r + i] + under[r + i][tap] * stride + 4 * first;
                        for (int j = 0; j < 4; j++) sums[i][j] = _mm256_setzero_si256();
                    }
                    for (int64_t q = 0; q < n; q++) {
#pragma GCC unroll 3
                        for (int i = 0; i < 3; i++) {
                            int32_t four;
                            memcpy(&four, x[i] + 4 * q, 4);
                            const __m256i spread = _mm256_set1_epi32(four);
#pragma GCC unroll 4
                            for (int j = 0; j < 4; j++) {
                                const __m256i w = _mm256_loadu_si256((const __m256i *)(from + q * 4 * block + 32 * (g + j)));
                                sums[i][j] = _mm256_add_epi16(sums[i][j], _mm256_maddubs_epi16(spread, w));
                            }
                        }
                    }
                    for (int i = 0; i < 3; i++)
                        for (int j = 0; j < 4; j++) {
                            __m256i *to = (__m256i *)(out + (r + i) * LANES + 8 * (g + j));
                            const __m256i whole = _mm256_madd_epi16(sums[i][j], ones);
                            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), whole));
                        }
                }
        }
#else
    memset(out, 0, TOGETHER * LANES * sizeof *out);
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t q = 0; q < quads; q++, factors += 4 * block)
            for (int r = 0; r < TOGETHER; r++)
                for (int k = 0; k < 4; k++) {
                    const int32_t x = rows[r][under[r][tap] * stride + 4 * q + k];
                    for (int c = 0; c < LANES; c++) out[r * LANES + c] += x * factors[4 * c + k];
                }
#endif
}

/* What one connection adds to the rows of a tile, as a product of all its inputs and weights. */
TARGET static void NAME(sum_products)(const Source *s, int64_t b, int64_t block, int64_t n, const int64_t *images,
                                      const int64_t *pixels, int add, int32_t *drive)
{
    const int64_t stride = (s->channels + SPARE - 1) / SPARE * SPARE, quads = (s->channels + 3) / 4;
    const int8_t *factors = s->factors + b * s->taps * quads * 4 * block;
    const int shift = (int)s->shift;
    const uint8_t *rows[TOGETHER];
    const int32_t *under[TOGETHER];
    for (int r = 0; r < TOGETHER; r++) { /* the last one once more where there are fewer */
        const int64_t i = r < n ? r : n - 1;
        rows[r] = s->bytes + images[i] * (s->pixels_in + 1) * stride;
        under[r] = s->under + pixels[i] * s->taps;
    }
    for (int64_t column = 0; column < block; column += LANES) {
        int32_t out[TOGETHER * LANES];
        NAME(multiply)(rows, under, s->taps, quads, stride, factors + 4 * column, block, s->graded, out);
        for (int64_t r = 0; r < n; r++) {
            if (s->offset)
                for (int c = 0; c < LANES; c++) out[r * LANES + c] += s->offset[b * block + column + c];
            int32_t *to = drive + r * block + column;
            if (add) for (int c = 0; c < LANES; c++) to[c] += (int32_t)((uint32_t)out[r * LANES + c] << shift);
            else for (int c = 0; c < LANES; c++) to[c] = (int32_t)((uint32_t)out[r * LANES + c] << shift);
        }
    }
}

/* The bytes of an image whose events are listed. */
TARGET static void NAME(spread)(const Source *s, int64_t unit, const uint32_t *lists, const int32_t *counts, uint8_t *bytes)
{
    const int64_t stride = (s->channels + SPARE - 1) / SPARE * SPARE;
    const int shift = __builtin_ctzll((uint64_t)unit);
    memset(bytes, 0, (size_t)((s->pixels_in + 1) * stride));
    for (int64_t p = 0; p < s->pixels_in; p++, bytes += stride, lists += s->channels + SPARE)
        for (int32_t i = 0; i < counts[p]; i++) bytes[lists[i] >> shift] = 1;
}

/* The bytes of an image of numbers [channels][pixels], NULL for zeros. */
TARGET static void NAME(take_bytes)(const Source *s, const uint8_t *x, uint8_t *bytes)
{
    const int64_t stride = (s->channels + SPARE - 1) / SPARE * SPARE;
    memset(bytes + s->pixels_in * stride, (int)s->zero, (size_t)stride); /* the padding */
    if (!x) memset(bytes, (int)s->zero, (size_t)(s->pixels_in * stride));
    else if (s->pixels_in == 1) memcpy(bytes, x, (size_t)s->channels);
    else for (int64_t first = 0; first < s->pixels_in; first += LANES) { /* few enough to stay in the cache */
        const int64_t last = s->pixels_in - first < LANES ? s->pixels_in : first + LANES;
        for (int64_t c = 0; c < s->channels; c++)
            for (int64_t p = first; p < last; p++) bytes[p * stride + c] = x[c * s->pixels_in + p];
    }
}

/* What the events under the taps of an output pixel add, where a channel reaches only `fan` targets (one-to-one,
 * depthwise, groups). */
TARGET static void NAME(scatter)(const Source *s, int64_t first, int64_t block, int64_t pixel, const uint32_t *lists,
                                 const int32_t *counts, int32_t *out)
{
    const int32_t *under = s->under + pixel * s->taps;
    const int shift = (int)s->shift;
    for (int64_t tap = 0; tap < s->taps; tap++) {
        const uint32_t *list = lists + under[tap] * (s->channels + SPARE);
        const int32_t count = counts[under[tap]];
        const int8_t *weight = (const int8_t *)s->weight + tap * s->channels * s->fan;
        if (s->fan == 1) {
            for (int32_t i = 0; i < count; i++) {
                const uint64_t to = (uint64_t)(s->to[list[i]] - first);
                if (to < (uint64_t)block) out[to] += (int32_t)((uint32_t)weight[list[i]] << shift);
            }
            continue;
        }
        for (int32_t i = 0; i < count; i++) {
            const int8_t *w = weight + list[i] * s->fan;
            const int64_t to = s->to[list[i]] - first, last = to + s->fan < block ? to + s->fan : block;
            for (int64_t c = to < 0 ? 0 : to; c < last; c++) out[c] += (int32_t)((uint32_t)w[c - to] << shift);
        }
    }
}

/* What the numbers under the taps of an output pixel add, where a channel reaches only `fan` targets. */
TARGET static void NAME(scatter_graded)(const Source *s, int64_t first, int64_t block, int64_t image, int64_t pixel,
                                        int32_t *out)
{
    const int64_t stride = (s->channels + SPARE - 1) / SPARE * SPARE;
    const int32_t *under = s->under + pixel * s->taps;
    for (int64_t tap = 0; tap < s->taps; tap++) {
        const uint8_t *bytes = s->bytes + (image * (s->pixels_in + 1) + under[tap]) * stride;
        const int8_t *w = (const int8_t *)s->weight + tap * s->channels * s->fan;
        for (int64_t c = 0; c < s->channels; c++, w += s->fan) {
            const int32_t x = bytes[c] - (int32_t)s->zero;
            const int64_t to = s->to[c] - first, last = to + s->fan < block ? to + s->fan : block;
            for (int64_t t = to < 0 ? 0 : to; t < last; t++) out[t] += (int32_t)((uint32_t)(x * w[t - to]) << s->shift);
        }
    }
}

#if WIDTH == 64
/* The same where every channel reaches the one target that lies where it lies; `bits` of that pixel. */
TARGET static void NAME(one_to_one)(const Source *s, int64_t first, int64_t targets, const uint64_t *bits, int32_t *out)
{
    const __m128i shift = _mm_cvtsi32_si128((int)s->shift);
    for (int64_t c = 0; c < targets; c += 16) { /* a block starts at a multiple of 64 */
        const __mmask16 here = (__mmask16)(bits[(first + c) / 64] >> (first + c) % 64);
        const __mmask16 inside = targets - c < 16 ? (__mmask16)((1 << (targets - c)) - 1) : 0xffff;
        const __m512i w = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(inside, s->weight + first + c));
        const __m512i sum = _mm512_loadu_si512(out + c);
        _mm512_storeu_si512(out + c, _mm512_mask_add_epi32(sum, here, sum, _mm512_sll_epi32(w, shift)));
    }
}
#endif

#if WIDTH == 64
/* Spikes, bits [rows][block], to bytes: [targets][all pixels] of an image, or the rows themselves if it has one pixel. */
TARGET static void NAME(write_spikes)(const uint8_t *tile, int64_t block, int64_t rows, int64_t targets,
                                      int64_t all_pixels, uint8_t *to, int64_t row_step)
{
    for (int64_t c = 0; c < targets; c += 64) {
        const int64_t lines = targets - c < 64 ? targets - c : 64;
        for (int64_t first = 0; first < rows; first += 64) {
            const int64_t left = rows - first < 64 ? rows - first : 64;
            uint64_t words[64];
            for (int64_t r = 0; r < left; r++) memcpy(words + r, tile + ((first + r) * block + c) / 8, 8);
            if (all_pixels == 1) {
                const __mmask64 inside = lines < 64 ? (1ull << lines) - 1 : ~0ull;
                for (int64_t r = 0; r < left; r++)
                    _mm512_mask_storeu_epi8(to + (first + r) * row_step + c, inside, _mm512_maskz_set1_epi8(words[r], 1));
                continue;
            }
            for (int64_t r = left; r < 64; r++) words[r] = 0;
            NAME(transpose_bits)(words);
            const __mmask64 inside = left < 64 ? (1ull << left) - 1 : ~0ull;
            for (int64_t i = 0; i < lines; i++)
                _mm512_mask_storeu_epi8(to + (c + i) * all_pixels + first, inside, _mm512_maskz_set1_epi8(words[i], 1));
        }
    }
}
#else
/* Transpose 16 x 16 bytes: four times the first halves of all rows, each beside the one eight rows on. */
TARGET INLINE void NAME(transpose)(Bytes *r)
{
    for (int round = 0; round < 4; round++) {
        Bytes next[TILE];
#pragma GCC unroll 8
        for (int i = 0; i < TILE / 2; i++) {
            next[2 * i] = SHUFFLE(r[i], r[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] = SHUFFLE(r[i], r[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(r, next, sizeof next);
    }
}

/* Spikes [rows][block] to [targets][all pixels] of an image, or the rows themselves if it has one pixel. */
TARGET static void NAME(write_spikes)(const uint8_t *tile, int64_t block, int64_t pixels, int64_t targets,
                                      int64_t all_pixels, uint8_t *to, int64_t row_step)
{
    if (all_pixels == 1) {
        for (int64_t r = 0; r < pixels; r++) memcpy(to + r * row_step, tile + r * block, (size_t)targets);
        return;
    }
    for (int64_t c = 0; c < targets; c += TILE) {
        const int64_t n = targets - c < TILE ? targets - c : TILE;
        for (int64_t first = 0; first < pixels; first += TILE) {
            const int64_t left = pixels - first < TILE ? pixels - first : TILE;
            Bytes rows[TILE];
#pragma GCC unroll 16
            for (int p = 0; p < TILE; p++) rows[p] = *(const Bytes *)(tile + (first + p) * block + c);
            NAME(transpose)(rows);
            for (int64_t i = 0; i < n; i++) {
                uint8_t *at = to + (c + i) * all_pixels + first;
                if (left == TILE) *(Bytes *)at = rows[i];
                else memcpy(at, &rows[i], (size_t)left);
            }
        }
    }
}
#endif

/* trunc(x keep / 4096), for |x| <= 2^24 where `narrow`, else up to 2^29.
 *
 * Narrow: x is a float32, and so is keep / 4096; their product, rounded toward zero, keeps all its integer bits.
 * Otherwise: x = 4096 high + low, 0 <= low, and high keep needs no rounding. Adding 4095 before the shift rounds up,
 * which is toward zero for a negative x.
 */
TARGET INLINE NAME(Ints) NAME(decay)(NAME(Ints) x, int32_t keep, const int narrow)
{
#if WIDTH == 64
    if (narrow)
        return (NAME(Ints))_mm512_cvttps_epi32(_mm512_mul_round_ps(_mm512_cvtepi32_ps((__m512i)x),
                                                                   _mm512_set1_ps((float)keep / 4096),
                                                                   _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
#elif WIDTH == 32 /* layer_steps() has set the rounding */
    if (narrow)
        return (NAME(Ints))_mm256_cvttps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps((__m256i)x),
                                                             _mm256_set1_ps((float)keep / 4096)));
#else
    (void)narrow;
#endif
    return (x >> 12) * keep + (((x & 4095) * keep + ((x >> 31) & 4095)) >> 12);
}

/* x, saturated at +-most. */
TARGET INLINE NAME(Ints) NAME(within)(NAME(Ints) x, int32_t most)
{
#if WIDTH == 64
    return (NAME(Ints))_mm512_max_epi32(_mm512_min_epi32((__m512i)x, _mm512_set1_epi32(most)), _mm512_set1_epi32(-most));
#elif WIDTH == 32
    return (NAME(Ints))_mm256_max_epi32(_mm256_min_epi32((__m256i)x, _mm256_set1_epi32(most)), _mm256_set1_epi32(-most));
#else
    const NAME(Ints) above = x > most, below = x < -most;
    return (above & most) | (below & -most) | (x & ~(above | below));
#endif
}

/* Count, in each lane, where x and y differ. */
TARGET INLINE void NAME(tick)(NAME(Ints) *count, NAME(Ints) x, NAME(Ints) y)
{
#if WIDTH == 64
    const __m512i before = (__m512i)*count, one = _mm512_set1_epi32(1);
    *count = (NAME(Ints))_mm512_mask_add_epi32(before, _mm512_cmpneq_epi32_mask((__m512i)x, (__m512i)y), before, one);
#else
    *count -= x != y;
#endif
}

/* What the neurons of a layer share, apart from it: else every store might have changed it. */
typedef struct {
    int32_t keep_u, keep_v, threshold, zero, amount, v_max;
    uint32_t limit;
    int64_t row; /* bytes of the spikes of a block */
} NAME(Rules);

/* Steps of some vectors of neurons: u and v in place, spikes as bits where the vectors are wide, else as bytes. Each step
 * has its row of drives, `apart` from the one before, and of spikes, a block apart; the state stays in registers. */
TARGET INLINE void NAME(neurons)(const NAME(Rules) k, const int32_t *drive, int64_t apart, int32_t *u, int32_t *v,
                                 const int32_t *bias, uint8_t *spikes, int64_t steps, const int vectors,
                                 const int memory, const int leak, const int may_wrap, const int narrow,
                                 NAME(Ints) *wraps, NAME(Ints) *saturations)
{
    enum { EACH = WIDTH / 4, BITS = WIDTH == 64 ? 8 : 1 }; /* of the latter in a byte */
    const uint32_t mask = 2 * k.limit - 1;
    NAME(Ints) wrapped = *wraps, saturated = *saturations, us[4], vs[4];
    for (int g = 0; g < vectors; g++) {
        if (memory) us[g] = *(const NAME(Ints) *)(u + g * EACH);
        vs[g] = *(const NAME(Ints) *)(v + g * EACH);
    }
    for (int64_t step = 0; step < steps; step++, drive += apart, spikes += k.row)
#pragma GCC unroll 4
        for (int g = 0; g < vectors; g++) {
            NAME(Ints) x = *(const NAME(Ints) *)(drive + g * EACH);
            if (memory) x += NAME(decay)(us[g], k.keep_u, narrow);
            if (may_wrap) {
                const NAME(Ints) exact = x;
                x = (NAME(Ints))(k.limit - ((k.limit - (NAME(Words))exact) & mask));
                NAME(tick)(&wrapped, x, exact);
            }
            if (memory) us[g] = x;
            const NAME(Ints) kept = leak ? NAME(decay)(vs[g], k.keep_v, narrow) : vs[g];
            const NAME(Ints) exact = kept + x + *(const NAME(Ints) *)(bias + g * EACH);
            const NAME(Ints) y = NAME(within)(exact, k.v_max);
            NAME(tick)(&saturated, y, exact);
#if WIDTH == 64
            const __mmask16 fired = _mm512_cmpgt_epi32_mask((__m512i)y, _mm512_set1_epi32(k.threshold));
            memcpy(spikes + g * EACH / BITS, &fired, sizeof fired);
            vs[g] = (NAME(Ints))_mm512_mask_sub_epi32((__m512i)y, fired, (__m512i)y, (__m512i)((y & k.zero) | k.amount));
#else
            const NAME(Ints) fired = y > k.threshold;
            *(NAME(Few) *)(spikes + g * EACH / BITS) = __builtin_convertvector(fired & 1, NAME(Few));
            vs[g] = y - (fired & ((y & k.zero) | k.amount));
#endif
        }
    for (int g = 0; g < vectors; g++) {
        if (memory) *(NAME(Ints) *)(u + g * EACH) = us[g];
        *(NAME(Ints) *)(v + g * EACH) = vs[g];
    }
    *wraps = wrapped;
    *saturations = saturated;
}

/* What the rows of a tile are: pixels of one image, or the steps of a sample whose image is a single pixel. */
typedef struct {
    int64_t sample, step, pixel, rows;
    int64_t image; /* among those whose events are listed */
} NAME(Tile);

/* All that arrives at the rows of a tile, int32 [rows][block]: in `drive`, or where it is already, rows `apart`. */
TARGET static const int32_t *NAME(sum_tile)(const Layer *a, const NAME(Tile) *tile, int64_t b, uint32_t *rows,
                                            int32_t *drive, int64_t *apart)
{
    const int64_t block = a->block, first = b * block, single = a->pixels == 1;
    const int64_t targets = a->targets - first < block ? a->targets - first : block;
    (void)targets; /* not everywhere */
    int written = 0;
    if (a->extra) {
        const int32_t *from = a->extra + tile->sample * a->extra_sample + tile->step * a->extra_step
                              + (b * a->pixels + tile->pixel) * a->lanes;
        *apart = single ? a->extra_step : a->lanes;
        if (!a->n_sources) return from;
        for (int64_t r = 0; r < tile->rows; r++, from += *apart) {
            memcpy(drive + r * block, from, (size_t)a->lanes * sizeof *drive);
            memset(drive + r * block + a->lanes, 0, (size_t)(block - a->lanes) * sizeof *drive);
        }
        written = 1;
    }
    *apart = block;
    for (int64_t i = 0; i < a->n_sources; i++) {
        const Source *s = a->sources + i;
        const uint8_t *weight = s->weight + b * s->taps * s->channels * block;
        if (s->to && !written) memset(drive, 0, (size_t)(tile->rows * block) * sizeof *drive);
        for (int64_t r = 0; r < tile->rows; r++) {
            const int64_t image = tile->image + (single ? r : 0), pixel = tile->pixel + (single ? 0 : r);
            if (s->graded && s->to) {
                NAME(scatter_graded)(s, first, block, image, pixel, drive + r * block);
                continue;
            }
            if (s->dense[image]) { /* and those that follow */
                int64_t images[TOGETHER], pixels[TOGETHER], n = 0;
                for (; n < TOGETHER && r + n < tile->rows && s->dense[image + (single ? n : 0)]; n++) {
                    images[n] = image + (single ? n : 0);
                    pixels[n] = pixel + (single ? 0 : n);
                }
                NAME(sum_products)(s, b, block, n, images, pixels, written, drive + r * block);
                r += n - 1;
                continue;
            }
            const uint32_t *lists = s->lists + image * (s->channels + SPARE) * (s->pixels_in + 1);
            const int32_t *counts = s->counts + image * (s->pixels_in + 1);
#if WIDTH == 64
            if (s->one_to_one) {
                const uint64_t *bits = s->bits + (image * s->pixels_in + pixel) * ((s->channels + 63) / 64);
                NAME(one_to_one)(s, first, targets, bits, drive + r * block);
            } else
#endif
            if (s->to) NAME(scatter)(s, first, block, pixel, lists, counts, drive + r * block);
            else NAME(sum_rows)(s, weight, block, pixel, lists, counts, rows, written, drive + r * block);
        }
        written = 1;
    }
    if (!written) memset(drive, 0, (size_t)(tile->rows * block) * sizeof *drive);
    return drive;
}

TARGET static void NAME(trace_row)(const Layer *a, int64_t at, int64_t targets, const int32_t *drive, const int32_t *u,
                                   const int32_t *v)
{
    for (int64_t c = 0; c < targets; c++) {
        a->current_trace[at + c * a->pixels] = drive[c];
        a->u_trace[at + c * a->pixels] = u[c];
        a->v_trace[at + c * a->pixels] = v[c];
    }
}

/* The neurons of a tile, and their spikes to where they belong: all its steps at once, or row by row. */
TARGET INLINE void NAME(update_tile)(Layer *a, const NAME(Tile) *tile, int64_t b, const int32_t *drive,
                                     int64_t apart, uint8_t *spikes, const int memory, const int leak, const int may_wrap,
                                     const int narrow)
{
    const int64_t block = a->block, blocks = (a->targets + block - 1) / block, single = a->pixels == 1;
    const int64_t targets = a->targets - b * block < block ? a->targets - b * block : block;
    enum { EACH = WIDTH / 4, VECTORS = WIDTH == 64 ? 4 : WIDTH == 32 ? 2 : 1, BITS = WIDTH == 64 ? 8 : 1 };
    const NAME(Rules) rules = {(int32_t)a->keep_u, (int32_t)a->keep_v, (int32_t)a->threshold, (int32_t)a->zero,
                               (int32_t)a->amount, (int32_t)(a->limit - 1), (uint32_t)a->limit, block / BITS};
    const int traced = memory && a->v_trace, per_pixel = (int)a->bias_per_pixel;
    const int64_t pixel = tile->pixel, at = ((tile->sample * blocks + b) * a->pixels + pixel) * a->lanes;
    const int64_t n = tile->rows, steps = single && !traced ? n : 1, next = single ? 0 : a->lanes;
    const int32_t *bias = a->bias + (per_pixel ? b * a->pixels + pixel : b) * a->lanes;
    int32_t *u = memory ? a->u + at : a->v, *v = a->v + at; /* u is not used without */
    NAME(Ints) wraps = {0}, saturations = {0};
    for (int64_t r = 0; r < n; r += steps) {
        const int32_t *from = drive + r * apart;
        uint8_t *to = spikes + r * block / BITS;
        int64_t i = 0; /* no vector without a target */
        for (; i + VECTORS * EACH <= targets; i += VECTORS * EACH)
            NAME(neurons)(rules, from + i, apart, u + i, v + i, bias + i, to + i / BITS, steps, VECTORS, memory, leak, may_wrap,
                          narrow, &wraps, &saturations);
        for (; i < targets; i += EACH)
            NAME(neurons)(rules, from + i, apart, u + i, v + i, bias + i, to + i / BITS, steps, 1, memory, leak, may_wrap,
                          narrow, &wraps, &saturations);
        if (traced)
            NAME(trace_row)(a, (tile->step + (single ? r : 0)) * a->trace_step + tile->sample * a->trace_sample
                            + b * block * a->pixels + pixel + (single ? 0 : r), targets, from, u, v);
        if (memory) u += next;
        v += next;
        if (per_pixel) bias += next;
    }
    for (int i = 0; i < WIDTH / 4; i++) {
        a->wraps += wraps[i];
        a->saturations += saturations[i];
    }
    if (!a->spikes) return;
    uint8_t *to = a->spikes + tile->sample * a->spikes_sample + tile->step * a->spikes_step + b * block * a->pixels;
    NAME(write_spikes)(spikes, block, tile->rows, targets, a->pixels, to + tile->pixel, a->spikes_step);
}

TARGET static void NAME(run_tile)(Layer *a, const NAME(Tile) *tile, int64_t b, uint32_t *rows, int32_t *drive,
                                  uint8_t *spikes)
{
    int64_t apart;
    const int32_t *sums = NAME(sum_tile)(a, tile, b, rows, drive, &apart);
    const int leak = a->keep_v != 4096, narrow = WIDTH > 16 && a->limit <= 1 << 24;
    if (a->u && leak && narrow && a->may_wrap) NAME(update_tile)(a, tile, b, sums, apart, spikes, 1, 1, 1, 1);
    else if (a->u && leak && narrow) NAME(update_tile)(a, tile, b, sums, apart, spikes, 1, 1, 0, 1);
    else if (a->u && leak) NAME(update_tile)(a, tile, b, sums, apart, spikes, 1, 1, 1, 0);
    else if (a->u && narrow) NAME(update_tile)(a, tile, b, sums, apart, spikes, 1, 0, 1, 1);
    else if (a->u) NAME(update_tile)(a, tile, b, sums, apart, spikes, 1, 0, 1, 0);
    else if (leak && narrow) NAME(update_tile)(a, tile, b, sums, apart, spikes, 0, 1, 1, 1);
    else if (leak) NAME(update_tile)(a, tile, b, sums, apart, spikes, 0, 1, 1, 0);
    else if (a->may_wrap) NAME(update_tile)(a, tile, b, sums, apart, spikes, 0, 0, 1, 1);
    else NAME(update_tile)(a, tile, b, sums, apart, spikes, 0, 0, 0, 1);
}

/* Events of one image of every source; none before the step at which the first ones arrive. */
TARGET static void NAME(list_image)(Layer *a, int64_t image, int64_t sample, int64_t step)
{
    for (int64_t i = 0; i < a->n_sources; i++) {
        const Source *s = a->sources + i;
        uint32_t *lists = s->lists + image * (s->channels + SPARE) * (s->pixels_in + 1);
        int32_t *counts = s->counts + image * (s->pixels_in + 1);
        const int64_t words = s->pixels_in * ((s->channels + 63) / 64);
        const uint8_t *x = s->x + (step - s->silent) * s->x_step + sample * s->x_sample;
        const uint32_t unit = s->to ? 1 : (uint32_t)a->block;
        const int64_t size = (s->pixels_in + 1) * ((s->channels + SPARE - 1) / SPARE * SPARE);
        if (s->graded) {
            NAME(take_bytes)(s, step < s->silent ? NULL : x, s->bytes + image * size);
            s->dense[image] = 1;
            continue;
        }
        counts[s->pixels_in] = 0; /* the padding */
        s->dense[image] = 0;
        if (step < s->silent) {
            memset(counts, 0, (size_t)s->pixels_in * sizeof *counts);
            memset(s->bits + image * words, 0, (size_t)words * sizeof *s->bits);
        }
#if WIDTH == 64
        else if (s->one_to_one) NAME(list_bits)(x, s->channels, s->pixels_in, s->bits + image * words);
#endif
        else NAME(list_events)(x, s->channels, s->pixels_in, unit, a->vbmi2, s->bits + image * words, lists, counts);
        if (!s->factors) continue;
        int64_t events = 0;
        for (int64_t p = 0; p < s->pixels_in; p++) events += counts[p];
        if (events < s->dense_above) continue;
        NAME(spread)(s, unit, lists, counts, s->bytes + image * size);
        s->dense[image] = 1;
        a->products++;
    }
}

/* Ask for an image of a single pixel before it is read: those of one sample lie far apart. */
TARGET INLINE void NAME(foresee)(const Layer *a, int64_t sample, int64_t step)
{
    for (int64_t i = 0; i < a->n_sources; i++) {
        const Source *s = a->sources + i;
        if (s->pixels_in > 1 || step < s->silent) continue;
        const uint8_t *x = s->x + (step - s->silent) * s->x_step + sample * s->x_sample;
        for (int64_t c = 0; c < s->channels; c += 64) __builtin_prefetch(x + c);
    }
}

/* Whether every channel of a connection of spikes reaches just the target that lies where it lies. */
TARGET static int NAME(is_one_to_one)(const Layer *a, const Source *s)
{
    if (s->graded || !s->to || s->fan != 1 || s->taps != 1 || s->channels != a->targets || s->pixels_in != a->pixels) return 0;
    for (int64_t c = 0; c < s->channels; c++)
        if (s->to[c] != c) return 0;
    for (int64_t p = 0; p < a->pixels; p++)
        if (s->under[p] != p) return 0;
    return 1;
}

/* Room for what a call lists and sums, `steps` at a time. 0 where memory ran out: then too, free_layer() is due. */
TARGET static int NAME(make_room)(Layer *a, int64_t steps)
{
    const int64_t images = steps * a->samples, values = PIXELS(a->block) * a->block;
    int64_t bytes = 1, most_rows = 0;
    for (int64_t i = 0; i < a->n_sources; i++) {
        const Source *s = a->sources + i;
        bytes += 4 * s->pixels_in * (s->channels + SPARE);
        most_rows = s->taps * s->channels > most_rows ? s->taps * s->channels : most_rows;
    }
    int64_t together = LIST_BYTES / bytes;
    together = together < 1 ? 1 : together > images ? images : together;
    a->together = together;
    a->rows = malloc((size_t)(most_rows + SPARE) * sizeof *a->rows);
    a->drive = malloc((size_t)values * sizeof *a->drive);
    a->fired = malloc((size_t)values);
    int done = a->rows && a->drive && a->fired;
    for (int64_t i = 0; i < a->n_sources; i++) {
        Source *s = a->sources + i;
        s->lists = malloc((size_t)(together * (s->channels + SPARE) * (s->pixels_in + 1)) * sizeof *s->lists);
        s->counts = malloc((size_t)(together * (s->pixels_in + 1)) * sizeof *s->counts);
        s->bits = malloc((size_t)(together * s->pixels_in * ((s->channels + 63) / 64)) * sizeof *s->bits);
        s->one_to_one = NAME(is_one_to_one)(a, s);
        const int by_bytes = s->factors || s->graded;
        s->bytes = by_bytes ? malloc((size_t)(together * (s->pixels_in + 1) * (s->channels + SPARE))) : NULL;
        s->dense = malloc((size_t)together);
        done = done && s->lists && s->counts && s->bits && s->dense && (s->bytes || !by_bytes);
    }
    return done;
}

/* The steps from `start` up to `stop` of all samples, sample by sample. Inlined into the turns, its loops are some 5 %
 * slower (GCC, measured). */
TARGET static __attribute__((noinline)) void NAME(advance)(Layer *a, int64_t start, int64_t stop)
{
    const int64_t steps = stop - start, images = steps * a->samples, single = a->pixels == 1, span = PIXELS(a->block);
    for (int64_t first = 0; first < images; first += a->together) {
        const int64_t last = images - first < a->together ? images : first + a->together;
        for (int64_t i = first; i < last; i++) {
            if (i + AHEAD < last) NAME(foresee)(a, (i + AHEAD) / steps, start + (i + AHEAD) % steps);
            NAME(list_image)(a, i - first, i / steps, start + i % steps);
        }
        for (int64_t b = a->first_block; b < a->last_block; b++) { /* weights of one block stay in the cache */
            for (int64_t i = first; i < last;) {
                NAME(Tile) tile = {i / steps, start + i % steps, 0, 1, i - first};
                if (single) {
                    tile.rows = stop - tile.step < last - i ? stop - tile.step : last - i;
                    tile.rows = tile.rows < span ? tile.rows : span;
                    NAME(run_tile)(a, &tile, b, a->rows, a->drive, a->fired);
                    i += tile.rows;
                    continue;
                }
                for (int64_t p = a->first_pixel; p < a->last_pixel; p += span) {
                    tile.pixel = p;
                    tile.rows = a->last_pixel - p < span ? a->last_pixel - p : span;
                    NAME(run_tile)(a, &tile, b, a->rows, a->drive, a->fired);
                }
                i++;
            }
        }
    }
}

/* Layers that hear each other, in turns of `stride` steps; 0 where memory ran out. */
TARGET static int NAME(layer_steps)(Layer *layers, int64_t n, int64_t stride)
{
    int done = 1;
#if WIDTH == 32
    const unsigned rounding = _mm_getcsr();
    _mm_setcsr(_MM_MASK_MASK | _MM_ROUND_TOWARD_ZERO); /* for decay(), the only floating point here */
#endif
    for (int64_t i = 0; i < n; i++) done = NAME(make_room)(layers + i, stride) && done;
    int64_t before = n > 1 ? nanoseconds() : 0;
    for (int64_t step = 0; done && step < layers->steps; step += stride)
        for (int64_t i = 0; i < n; i++) {
            NAME(advance)(layers + i, step, layers->steps - step < stride ? layers->steps : step + stride);
            if (n == 1) continue;
            const int64_t now = nanoseconds();
            layers[i].nanoseconds += now - before;
            before = now;
        }
#if WIDTH == 32
    _mm_setcsr(rounding);
#endif
    return done;
}
