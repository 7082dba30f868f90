// Kernels of one training step on a CPU: selection, decoding with the slopes of the active pairs, and the update.
//
// Compiled once per instruction set (see hatch_build.py) and called through ctypes by cpu.py, which documents the
// arguments. Plain C interface, no dependency: OpenMP's runtime is the one that torch has loaded, so that both share
// one pool of threads. For the meaning of a step see sae/autoencoder.py; plain.py is the same in torch operations.
//
// Everything is deterministic for a given number of threads: work is cut at fixed places, sums run in a fixed order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef float LanesAt __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Lanes load(const float *from) { return *reinterpret_cast<const LanesAt *>(from); }
inline void store(float *to, Lanes value) { *reinterpret_cast<LanesAt *>(to) = value; }

inline float total(Lanes value) {
    float sum = 0;
    for (int i = 0; i < LANES; ++i) sum += value[i];
    return sum;
}

inline float widen(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float widen(float value) { return value; }

inline uint16_t narrow(float value) {  // round to nearest even, as torch does
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Candidates of a row: value and latent of every pre-activation above a threshold.
struct Candidates {
    std::vector<float> value;
    std::vector<int32_t> index;
    std::vector<uint64_t> key;
    int capacity;
    int count = 0;

    explicit Candidates(int capacity)
        : value(capacity + LANES), index(capacity + LANES), key(capacity + LANES), capacity(capacity) {}

    // Keep the k largest; returns the smallest of them.
    float keep(int k) {
        if (count > k) {
            for (int i = 0; i < count; ++i) {
                uint32_t bits;
                std::memcpy(&bits, &value[i], 4);
                bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;  // ordered as the values are
                key[i] = uint64_t(bits) << 32 | uint32_t(~index[i]);     // of equal values the first latent wins
            }
            std::nth_element(key.begin(), key.begin() + (k - 1), key.begin() + count, std::greater<uint64_t>());
            for (int i = 0; i < k; ++i) {
                uint32_t bits = uint32_t(key[i] >> 32);
                bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
                std::memcpy(&value[i], &bits, 4);
                index[i] = int32_t(~uint32_t(key[i]));
            }
            count = k;
            return value[k - 1];
        }
        return *std::min_element(value.begin(), value.begin() + count);
    }
};

#if defined(__AVX512F__)
inline __m512 wide(const float *from) { return _mm512_loadu_ps(from); }
inline __m512 wide(const uint16_t *from) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
#endif

// Collect what is above the threshold; with k > 0 the threshold rises to the k-th value whenever the room is full.
template <class T>
void collect(const T *p, const float *bias, int features, float threshold, int k, Candidates &found) {
    found.count = 0;
    int j = 0;
#if defined(__AVX512F__)
    __m512 bound = _mm512_set1_ps(threshold);
    __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i next = _mm512_set1_epi32(LANES);
    for (; j + LANES <= features; j += LANES, place = _mm512_add_epi32(place, next)) {
        __builtin_prefetch(p + features + j);  // the next row
        __m512 value = _mm512_add_ps(wide(p + j), _mm512_loadu_ps(bias + j));
        __mmask16 above = _mm512_cmp_ps_mask(value, bound, _CMP_GT_OQ);
        if (!above) continue;
        // compressing in a register and storing it whole is several times faster than a compressing store
        _mm512_storeu_ps(&found.value[found.count], _mm512_maskz_compress_ps(above, value));
        _mm512_storeu_si512(&found.index[found.count], _mm512_maskz_compress_epi32(above, place));
        found.count += __builtin_popcount(above);
        if (found.count > found.capacity - LANES && k) bound = _mm512_set1_ps(threshold = found.keep(k));
    }
#endif
    for (; j < features; ++j) {
        float value = widen(p[j]) + bias[j];
        if (!(value > threshold)) continue;
        found.value[found.count] = value;
        found.index[found.count++] = j;
        if (found.count > found.capacity - LANES && k) threshold = found.keep(k);
    }
}

typedef uint16_t HalvesAt __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));

inline Lanes widened(const float *from) { return load(from); }
inline Lanes widened(const uint16_t *from) {
    return (Lanes)(__builtin_convertvector(*reinterpret_cast<const HalvesAt *>(from), Bits) << 16);
}

// A number that at least k values of the row reach: the k-th largest of the maxima of A * 16 interleaved parts. About
// A * 16 * log(1 / (1 - k / (A * 16))) values reach it, some 40 for k = 32 and A = 8.
template <int A, class T>
float reached_by(const T *p, const float *bias, int features, int k) {
    const float lowest = -std::numeric_limits<float>::infinity();
    Lanes most[A];
    for (int a = 0; a < A; ++a)
        for (int i = 0; i < LANES; ++i) most[a][i] = lowest;
    int j = 0;
    for (; j + A * LANES <= features; j += A * LANES)
        for (int a = 0; a < A; ++a) {
            const Lanes value = widened(p + j + a * LANES) + load(bias + j + a * LANES);
            most[a] = value > most[a] ? value : most[a];  // what is not a number stays out
        }
    float parts[A * LANES];
    for (int a = 0; a < A; ++a) store(parts + a * LANES, most[a]);
    for (int part = 0; j < features; ++j, part = (part + 1) % (A * LANES)) {
        const float value = widen(p[j]) + bias[j];
        if (value > parts[part]) parts[part] = value;
    }
    std::nth_element(parts, parts + (k - 1), parts + A * LANES, std::greater<float>());
    return parts[k - 1];
}

template <class T>
float bound_of(const T *p, const float *bias, int features, int k) {
    if (k <= 8) return reached_by<2>(p, bias, features, k);
    if (k <= 16) return reached_by<4>(p, bias, features, k);
    if (k <= 48) return reached_by<8>(p, bias, features, k);
    if (k <= 128) return reached_by<16>(p, bias, features, k);
    if (k <= 256) return reached_by<32>(p, bias, features, k);
    return -std::numeric_limits<float>::infinity();
}

template <class T>
void topk_rows(const T *p, const float *bias, int64_t n, int features, int k, int32_t *index, float *value, int threads) {
    const float lowest = -std::numeric_limits<float>::infinity();
#pragma omp parallel num_threads(threads)
    {
        Candidates found(std::max(8 * k, 256) + LANES);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; ++i) {
            const T *row = p + i * features;
            collect(row, bias, features, std::nextafter(bound_of(row, bias, features, k), lowest), k, found);
            if (found.count) found.keep(k);
            for (int j = 0; j < k; ++j) {  // fewer than k only where pre-activations are not finite
                index[i * k + j] = j < found.count ? found.index[j] : 0;
                value[i * k + j] = j < found.count ? found.value[j] : 0;
            }
        }
    }
}

template <class T>
int64_t above_count(const T *p, const float *bias, int64_t n, int features, float threshold, int64_t *offsets, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const T *row = p + i * features;
        int64_t count = 0;
        for (int j = 0; j < features; ++j) count += widen(row[j]) + bias[j] > threshold;
        offsets[i + 1] = count;
    }
    offsets[0] = 0;
    for (int64_t i = 0; i < n; ++i) offsets[i + 1] += offsets[i];
    return offsets[n];
}

template <class T>
void above_fill(const T *p, const float *bias, int64_t n, int features, float threshold, const int64_t *offsets,
                int32_t *index, float *value, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Candidates found(features);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; ++i) {
            collect(p + i * features, bias, features, threshold, 0, found);
            int64_t count = offsets[i + 1] - offsets[i];
            std::copy_n(found.index.begin(), count, index + offsets[i]);
            std::copy_n(found.value.begin(), count, value + offsets[i]);
        }
    }
}

// Half of a row at a time would not help: k rows of the decoder fit the second-level cache and are read twice.
void axpy(float *to, float scale, const float *from, int count) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(to + i) + scale * load(from + i));
    for (; i < count; ++i) to[i] += scale * from[i];
}

float dot(const float *a, const float *b, int count) {
    Lanes sum[4] = {};
    int i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int j = 0; j < 4; ++j) sum[j] += load(a + i + j * LANES) * load(b + i + j * LANES);
    for (; i + LANES <= count; i += LANES) sum[0] += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < count; ++i) rest += a[i] * b[i];
    return total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
}

// to[0..width) += sum over pairs of scale[j] * rows[index[j]], with a strip of the result in registers
void gather(float *to, const int32_t *index, const float *scale, int64_t count, const float *rows, int width) {
    constexpr int STRIP = 6;
    int c = 0;
    for (; c + STRIP * LANES <= width; c += STRIP * LANES) {
        Lanes sum[STRIP];
        for (int s = 0; s < STRIP; ++s) sum[s] = load(to + c + s * LANES);
        for (int64_t j = 0; j < count; ++j) {
            const float *from = rows + int64_t(index[j]) * width + c;
            const float weight = scale[j];
            for (int s = 0; s < STRIP; ++s) sum[s] += weight * load(from + s * LANES);
        }
        for (int s = 0; s < STRIP; ++s) store(to + c + s * LANES, sum[s]);
    }
    if (c == width) return;
    for (int64_t j = 0; j < count; ++j) axpy(to + c, scale[j], rows + int64_t(index[j]) * width + c, width - c);
}

struct Pair {
    int32_t segment;
    float value;
    float slope;
};

// Gradients of one latent's decoder and encoder rows: a strip of each in registers, all pairs of the latent.
void gradients(const Pair *pairs, int64_t count, const float *h, const float *x, int groups, int width, float *decoder,
               float *encoder) {
    constexpr int STRIP = 4;
    int c = 0;
    for (; c + STRIP * LANES <= width; c += STRIP * LANES) {
        Lanes dec[STRIP] = {}, enc[STRIP] = {};
        for (int64_t j = 0; j < count; ++j) {
            const Pair &pair = pairs[j];
            const float *error = h + int64_t(pair.segment) * width + c;
            const float *row = x + int64_t(groups == 1 ? pair.segment : pair.segment / groups) * width + c;
            for (int s = 0; s < STRIP; ++s) {
                dec[s] += pair.value * load(error + s * LANES);
                enc[s] += pair.slope * load(row + s * LANES);
            }
        }
        for (int s = 0; s < STRIP; ++s) {
            store(decoder + c + s * LANES, dec[s]);
            store(encoder + c + s * LANES, enc[s]);
        }
    }
    for (; c < width; ++c) {
        float dec = 0, enc = 0;
        for (int64_t j = 0; j < count; ++j) {
            const Pair &pair = pairs[j];
            dec += pair.value * h[int64_t(pair.segment) * width + c];
            enc += pair.slope * x[int64_t(groups == 1 ? pair.segment : pair.segment / groups) * width + c];
        }
        decoder[c] = dec;
        encoder[c] = enc;
    }
}

struct Adam {
    float beta1, beta2, eps;
};

// One element: moves both moments, returns m / (sqrt(v) + eps).
inline float direction(float gradient, float &m, float &v, const Adam &adam) {
    m += (gradient - m) * (1 - adam.beta1);
    v = v * adam.beta2 + gradient * gradient * (1 - adam.beta2);
    return m / (std::sqrt(v) + adam.eps);
}

}  // namespace

extern "C" {

int hydrophone_kernels_version() { return 3; }

void hydrophone_topk(const void *p, int half, const float *bias, int64_t n, int features, int k, int32_t *index,
                     float *value, int threads) {
    if (half)
        topk_rows(static_cast<const uint16_t *>(p), bias, n, features, k, index, value, threads);
    else
        topk_rows(static_cast<const float *>(p), bias, n, features, k, index, value, threads);
}

int64_t hydrophone_above_count(const void *p, int half, const float *bias, int64_t n, int features, float threshold,
                               int64_t *offsets, int threads) {
    return half ? above_count(static_cast<const uint16_t *>(p), bias, n, features, threshold, offsets, threads)
                : above_count(static_cast<const float *>(p), bias, n, features, threshold, offsets, threads);
}

void hydrophone_above_fill(const void *p, int half, const float *bias, int64_t n, int features, float threshold,
                           const int64_t *offsets, int32_t *index, float *value, int threads) {
    if (half)
        above_fill(static_cast<const uint16_t *>(p), bias, n, features, threshold, offsets, index, value, threads);
    else
        above_fill(static_cast<const float *>(p), bias, n, features, threshold, offsets, index, value, threads);
}

void hydrophone_reconstruct(const int64_t *offsets, const int32_t *index, const float *value, const float *w_dec,
                            const float *target, int64_t n, int groups, int width, float *error, float *h, float *slope,
                            int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const int64_t *at = offsets + i * groups;
        float *last = error + i * width;
        for (int c = 0; c < width; ++c) last[c] = -target[i * width + c];
        for (int g = 0; g < groups; ++g) {
            gather(last, index + at[g], value + at[g], at[g + 1] - at[g], w_dec, width);
            if (h) std::copy_n(last, width, h + (i * groups + g) * width);
        }
        if (h) {  // of prefix g the gradient reaches all latents before its end: sums from behind, of the mean's share
            float *sums = h + i * groups * width;
            for (int c = 0; c < width; ++c) sums[(groups - 1) * width + c] /= groups;
            for (int g = groups - 2; g >= 0; --g)
                for (int c = 0; c < width; ++c)
                    sums[g * width + c] = sums[g * width + c] / groups + sums[(g + 1) * width + c];
        }
        if (!slope) continue;
        for (int g = 0; g < groups; ++g) {
            const float *by = h ? h + (i * groups + g) * width : last;
            for (int64_t j = at[g]; j < at[g + 1]; ++j) slope[j] = dot(by, w_dec + int64_t(index[j]) * width, width);
        }
    }
}

// sums[0]: squared error of the rows rebuilt, sums[1]: squared norm of the target, then the target's sum by column.
// Returns 0, or 1 when there was no memory.
int hydrophone_misfit(const int64_t *offsets, const int32_t *index, const float *value, const float *w_dec,
                      const float *b_dec, const float *target, int64_t n, int width, double *sums, int threads) {
    std::unique_ptr<double[]> parts(new (std::nothrow) double[size_t(threads) * (width + 2)]());
    std::unique_ptr<float[]> errors(new (std::nothrow) float[size_t(threads) * (width + LANES)]);
    if (!parts || !errors) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        double *own = parts.get() + size_t(part) * (width + 2);
        float *error = errors.get() + size_t(part) * (width + LANES);
        for (int64_t i = n * part / threads; i < n * (part + 1) / threads; ++i) {
            const float *row = target + i * width;
            for (int c = 0; c < width; ++c) error[c] = b_dec[c] - row[c];
            gather(error, index + offsets[i], value + offsets[i], offsets[i + 1] - offsets[i], w_dec, width);
            own[0] += dot(error, error, width);
            own[1] += dot(row, row, width);
            for (int c = 0; c < width; ++c) own[2 + c] += row[c];
        }
    }
    std::copy_n(parts.get(), width + 2, sums);
    for (int part = 1; part < threads; ++part)
        for (int c = 0; c < width + 2; ++c) sums[c] += parts[size_t(part) * (width + 2) + c];
    return 0;
}

// Returns 0, or 1 when there was no memory for the sorted pairs.
int hydrophone_update(const int64_t *offsets, const int32_t *index, const float *value, const float *slope,
                      const float *h, const float *x, int64_t segments, int groups, int width, int features,
                      float scale, float rate, float encoder_rate, float beta1, float beta2, float eps,
                      int train_bias, float *w_dec, float *w_enc, float *b_enc, uint16_t *w_half, float *m_dec, float *v_dec, float *m_enc, float *v_enc,
                      float *m_bias, float *v_bias, int64_t *steps, int32_t *fired, float *b_dec_gradient,
                      int threads) {
    const Adam adam{beta1, beta2, eps};
    // counting sort of the pairs by latent
    std::unique_ptr<int64_t[]> start(new (std::nothrow) int64_t[features + 1]());
    const int64_t most = offsets[segments];
    std::unique_ptr<Pair[]> pairs(new (std::nothrow) Pair[std::max<int64_t>(most, 1)]);
    std::unique_ptr<float[]> sums(new (std::nothrow) float[size_t(threads) * width]());
    std::unique_ptr<int64_t[]> cuts(new (std::nothrow) int64_t[threads + 1]);
    if (!start || !pairs || !sums || !cuts) return 1;
    for (int64_t j = 0; j < most; ++j)
        if (value[j] != 0 || slope[j] != 0) ++start[index[j] + 1];
    int64_t used = 0;
    for (int f = 0; f < features; ++f) {
        fired[f] = int32_t(start[f + 1]);
        used += start[f + 1] != 0;
        start[f + 1] += start[f];
    }
    {
        std::unique_ptr<int64_t[]> at(new (std::nothrow) int64_t[features]);
        if (!at) return 1;
        std::copy_n(start.get(), features, at.get());
        for (int64_t s = 0; s < segments; ++s)
            for (int64_t j = offsets[s]; j < offsets[s + 1]; ++j)
                if (value[j] != 0 || slope[j] != 0) pairs[at[index[j]]++] = Pair{int32_t(s), value[j], slope[j]};
    }
    // each thread a run of latents of about equal work: a latent's own memory pass is worth some four pairs
    const int64_t work = start[features] + 4 * used;
    cuts[0] = 0;
    cuts[threads] = features;
    int64_t done = 0;
    for (int f = 0, part = 1; f < features && part < threads; ++f) {
        done += start[f + 1] - start[f] + 4 * (start[f + 1] != start[f]);
        while (part < threads && done >= work * part / threads) cuts[part++] = f + 1;
        if (f == features - 1)
            while (part < threads) cuts[part++] = features;
    }

#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        std::vector<float> buffer(size_t(2) * (width + LANES));
        float *decoder = buffer.data(), *encoder = decoder + width + LANES;
        float *sum = sums.get() + int64_t(part) * width;
        for (int64_t f = cuts[part]; f < cuts[part + 1]; ++f) {
            const int64_t count = start[f + 1] - start[f];
            if (!count) continue;
            const Pair *own = pairs.get() + start[f];
            float *wd = w_dec + f * width, *we = w_enc + f * width;
            float *md = m_dec + f * width, *vd = v_dec + f * width, *me = m_enc + f * width, *ve = v_enc + f * width;
            for (const float *row : {wd, we, md, vd, me, ve})  // needed after the gradients
                for (int c = 0; c < width; c += LANES) __builtin_prefetch(row + c);
            gradients(own, count, h, x, groups, width, decoder, encoder);
            float bias = 0;
            for (int64_t j = 0; j < count; ++j) bias += own[j].slope;
            axpy(sum, bias, we, width);
            // the part of a decoder gradient along its row only changes the norm, which is 1
            const float along = dot(decoder, wd, width);
            const double step = double(++steps[f]);
            const float corrected = float(std::sqrt(1 - std::pow(double(beta2), step)) /
                                          (1 - std::pow(double(beta1), step)));
            const float size = rate * corrected, encoder_size = encoder_rate * corrected;
            float norm = 0;
#pragma omp simd reduction(+ : norm)
            for (int c = 0; c < width; ++c) {
                const float moved = wd[c] - size * direction(scale * (decoder[c] - along * wd[c]), md[c], vd[c], adam);
                wd[c] = moved;
                norm += moved * moved;
            }
            const float inverse = 1 / std::max(std::sqrt(norm), 1e-12f);
#pragma omp simd
            for (int c = 0; c < width; ++c) {
                wd[c] *= inverse;
                we[c] -= encoder_size * direction(scale * encoder[c], me[c], ve[c], adam);
            }
            if (train_bias) b_enc[f] -= encoder_size * direction(scale * bias, m_bias[f], v_bias[f], adam);
            if (w_half)
#pragma omp simd
                for (int c = 0; c < width; ++c) w_half[f * width + c] = narrow(we[c]);
        }
    }
    for (int c = 0; c < width; ++c) {
        float sum = 0;
        for (int part = 0; part < threads; ++part) sum += sums[int64_t(part) * width + c];
        b_dec_gradient[c] = -scale * sum;
    }
    return 0;
}
}
