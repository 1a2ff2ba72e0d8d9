// Compiled once for each set of instructions, with LEVEL naming it; the plain one also holds the choice.
#include "kernels.h"

namespace dualpath {
namespace {

inline float load(const float *at) { return *at; }
inline double load(const double *at) { return *at; }
inline float load(const Bf16 *at) {
  uint32_t bits = static_cast<uint32_t>(at->bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float *at, float value) { *at = value; }
inline void store(double *at, double value) { *at = value; }
// To nearest, ties to even; a NaN stays one.
inline void store(Bf16 *at, float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  at->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

// exp after Cephes, relative error below 2e-7: libm's would be called value by value.
inline float exponential(float x) {
  // Not the other way round: a NaN stays one, and makes one of the polynomial.
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  // Of 1.5 * 2^23 and a small number the last digit is worth 1: the sum is rounded to a whole number, whose bits are
  // its last.
  constexpr float ROUNDS = 12582912.0f;
  float rounded = x * 1.44269504f + ROUNDS;
  float whole = rounded - ROUNDS;
  float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &rounded, sizeof bits);
  bits = (bits << 23) + (127u << 23);
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return p * power;
}
inline double exponential(double x) { return __builtin_exp(x); }

typedef uint32_t Four __attribute__((vector_size(16)));
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else // which GCC has since 12 only
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Four{__VA_ARGS__})
#endif

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

template <typename T> struct Loops {
  using A = Accumulator<T>;

  // Where a part of row r of a modulation lies.
  static const T *part(const Modulation<T> &m, int64_t row, int64_t width, Part which) {
    return m.values + (row / m.tokens_per_row) * PARTS * width + which * width;
  }

  static void norm(Rows rows, const T *x, Modulation<T> m, Part shift, Part scale, T *h, A *mean, A *rstd) {
    const int64_t width = rows.width;
    const T *shift_bias = m.bias + shift * width, *scale_bias = m.bias + scale * width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T *in = x + row * width;
      A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) sum += load(in + i);
      const A middle = sum / width;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < width; ++i) squares += (load(in + i) - middle) * (load(in + i) - middle);
      const A over = 1 / root(squares / width + A(1e-6));
      mean[row] = middle;
      rstd[row] = over;
      const T *shifts = part(m, row, width, shift), *scales = part(m, row, width, scale);
      T *out = h + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A unit = (load(in + i) - middle) * over;
        store(out + i, unit * (1 + load(scales + i) + load(scale_bias + i)) + load(shifts + i) + load(shift_bias + i));
      }
    }
  }

  static void gate(Rows rows, const T *x, const T *a, const T *bias, Modulation<T> m, Part which, T *y) {
    const int64_t width = rows.width;
    const T *gate_bias = m.bias + which * width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T *in = x + row * width, *add = a + row * width, *gates = part(m, row, width, which);
      T *out = y + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i)
        store(out + i, load(in + i) + (load(gates + i) + load(gate_bias + i)) * (load(add + i) + load(bias + i)));
    }
  }

  static void gate_backward(Rows rows, const T *dy, const T *a, const T *bias, Modulation<T> m, Part which, T *da,
                            A *d_bias, ModulationGrad<T> dm) {
    const int64_t width = rows.width;
    const T *gate_bias = m.bias + which * width;
    A *sum = dm.sum + which * width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T *in = dy + row * width, *add = a + row * width, *gates = part(m, row, width, which);
      T *out = da + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A value = load(in + i) * (load(gates + i) + load(gate_bias + i));
        store(out + i, value);
        d_bias[i] += value;
        sum[i] += load(in + i) * (load(add + i) + load(bias + i));
      }
      if (!dm.tokens) continue;
      T *d_gate = dm.tokens + (row * PARTS + which) * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) store(d_gate + i, load(in + i) * (load(add + i) + load(bias + i)));
    }
  }

  static void norm_backward(Rows rows, const T *dh, const T *x, const A *mean, const A *rstd, const T *d_residual,
                            Modulation<T> m, Part shift, Part scale, T *dx, ModulationGrad<T> dm) {
    const int64_t width = rows.width;
    const T *scale_bias = m.bias + scale * width;
    A *shift_sum = dm.sum + shift * width, *scale_sum = dm.sum + scale * width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T *in = dh + row * width, *tokens = x + row * width, *scales = part(m, row, width, scale);
      const A middle = mean[row], over = rstd[row];
      A sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
      for (int64_t i = 0; i < width; ++i) {
        const A unit = (load(tokens + i) - middle) * over, d = load(in + i);
        const A d_unit = d * (1 + load(scales + i) + load(scale_bias + i));
        sum += d_unit;
        product += d_unit * unit;
        shift_sum[i] += d;
        scale_sum[i] += d * unit;
      }
      const A along = sum / width, across = product / width;
      const T *residual = d_residual + row * width;
      T *out = dx + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A unit = (load(tokens + i) - middle) * over;
        const A d_unit = load(in + i) * (1 + load(scales + i) + load(scale_bias + i));
        store(out + i, load(residual + i) + over * (d_unit - along - unit * across));
      }
      if (!dm.tokens) continue;
      T *d_shift = dm.tokens + (row * PARTS + shift) * width, *d_scale = dm.tokens + (row * PARTS + scale) * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        d_shift[i] = in[i];
        store(d_scale + i, load(in + i) * ((load(tokens + i) - middle) * over));
      }
    }
  }

  // 1 / (1 + exp(-2 z)) with z = sqrt(2 / pi) (u + 0.044715 u^3): GELU's tanh form is u times that.
  static A share(A u) { return 1 / (1 + exponential(A(-1.5957691216057308) * (u + A(0.044715) * u * u * u))); }

  static void gelu(Rows rows, const T *f, const T *bias, T *g) {
    const int64_t width = rows.width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T *in = f + row * width;
      T *out = g + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A u = load(in + i) + load(bias + i);
        store(out + i, u * share(u));
      }
    }
  }

  static void gelu_backward(Rows rows, const T *f, const T *bias, T *dg, T *g, A *d_bias) {
    const int64_t width = rows.width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T *in = f + row * width;
      T *d = dg + row * width, *out = g + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A u = load(in + i) + load(bias + i), s = share(u);
        const A slope = s + u * s * (1 - s) * A(1.5957691216057308) * (1 + A(3 * 0.044715) * u * u);
        const A df = load(d + i) * slope;
        store(out + i, u * s);
        store(d + i, df);
        d_bias[i] += df;
      }
    }
  }

  // One row of a head, with bias and factor.
  static void gather_row(int64_t width, const T *from, const T *bias, A factor, T *to) {
    if (bias) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) store(to + i, (load(from + i) + load(bias + i)) * factor);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) store(to + i, load(from + i) * factor);
    }
  }

  // Four values of 32 bits of each of four rows, `across` in the other direction; rows are so many such values apart.
  // As vectors of 16 bytes, which every processor has.
  static void transpose(const void *from, int64_t next_row, void *to, int64_t next_row_across) {
    const auto *in = static_cast<const char *>(from);
    auto *out = static_cast<char *>(to);
    Four rows[4];
    for (int i = 0; i < 4; ++i) __builtin_memcpy(&rows[i], in + i * next_row * 4, sizeof rows[i]);
    const Four a = SHUFFLE(rows[0], rows[1], 0, 4, 1, 5), b = SHUFFLE(rows[2], rows[3], 0, 4, 1, 5),
               c = SHUFFLE(rows[0], rows[1], 2, 6, 3, 7), d = SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
    const Four across[4] = {SHUFFLE(a, b, 0, 1, 4, 5), SHUFFLE(a, b, 2, 3, 6, 7), SHUFFLE(c, d, 0, 1, 4, 5),
                            SHUFFLE(c, d, 2, 3, 6, 7)};
    for (int i = 0; i < 4; ++i) __builtin_memcpy(out + i * next_row_across * 4, &across[i], sizeof across[i]);
  }

  // to[i] = low[i], high[i].
  static void interleave(int64_t width, const T *low, const T *high, T *to) {
    if constexpr (sizeof(T) == 2) {
      for (int64_t i = 0; i < width; ++i) {
        const uint32_t both = low[i].bits | static_cast<uint32_t>(high[i].bits) << 16;
        __builtin_memcpy(to + 2 * i, &both, sizeof both);
      }
    }
  }

  // Rows and columns of a head that are laid out at a time: across, 16 values of 4 bytes fill a line of the cache.
  static constexpr int64_t BAND = 16, PIECE = 128;

  // Asks for a row of a head before its time: rows lie too far apart for the processor to guess which comes next.
  static void fetch(Head head, const T *from, int64_t row, int64_t width) {
    constexpr int64_t LINE = 64 / sizeof(T);
    if (row >= head.tokens) return;
    for (int64_t i = 0; i < width; i += LINE) __builtin_prefetch(from + row * head.stride + i);
  }

  static void gather(Head head, const T *from, const T *bias, A factor, Layout layout, T *to) {
    if (layout == Layout::ROWS) {
      for (int64_t row = 0; row < head.tokens; ++row) {
        fetch(head, from, row + BAND, head.width);
        gather_row(head.width, from + row * head.stride, bias, factor, to + row * head.width);
      }
      return;
    }
    T band[BAND][PIECE];
    for (int64_t column = 0; column < head.width; column += PIECE) {
      const int64_t columns = head.width - column < PIECE ? head.width - column : PIECE;
      for (int64_t row = 0; row < head.tokens; row += BAND) {
        const int64_t rows = head.tokens - row < BAND ? head.tokens - row : BAND;
        for (int64_t r = 0; r < BAND; ++r) fetch(head, from + column, row + BAND + r, columns);
        for (int64_t r = 0; r < rows; ++r)
          gather_row(columns, from + (row + r) * head.stride + column, bias ? bias + column : nullptr, factor, band[r]);
        if (layout == Layout::ACROSS) {
          lay_across(band, rows, columns, head.tokens, to + column * head.tokens + row);
        } else if (layout == Layout::PAIRS) {
          for (int64_t r = 0; r + 1 < rows; r += 2)
            interleave(columns, band[r], band[r + 1], to + (row + r) * head.width + 2 * column);
        } else {
          lay_pairs_across(band, rows, columns, head.tokens, to + column * head.tokens + 2 * row);
        }
      }
    }
  }

  // to[column][row] = band[row][column], rows of `to` being `tokens` long.
  static void lay_across(const T (*band)[PIECE], int64_t rows, int64_t columns, int64_t tokens, T *to) {
    int64_t done = 0;
    if constexpr (sizeof(T) == 4) {
      if (rows == BAND)
        for (; done + 4 <= columns; done += 4)
          for (int64_t r = 0; r < BAND; r += 4) transpose(&band[r][done], PIECE, to + done * tokens + r, tokens);
    } else if constexpr (sizeof(T) == 2) {
      if (rows == BAND && tokens % 2 == 0) {
        T pairs[BAND / 2][2 * PIECE];
        for (int64_t r = 0; r < BAND / 2; ++r) interleave(columns, band[2 * r], band[2 * r + 1], pairs[r]);
        for (; done + 4 <= columns; done += 4)
          for (int64_t r = 0; r < BAND / 2; r += 4) transpose(&pairs[r][2 * done], PIECE, to + done * tokens + 2 * r, tokens / 2);
      }
    }
    for (; done < columns; ++done)
      for (int64_t r = 0; r < rows; ++r) to[done * tokens + r] = band[r][done];
  }

  // The same with columns 2 i and 2 i + 1 side by side. Of bf16 alone.
  static void lay_pairs_across(const T (*band)[PIECE], int64_t rows, int64_t columns, int64_t tokens, T *to) {
    int64_t done = 0;
    if constexpr (sizeof(T) == 2) {
      if (rows == BAND)
        for (; done + 8 <= columns; done += 8)
          for (int64_t r = 0; r < BAND; r += 4) transpose(&band[r][done], PIECE / 2, to + done * tokens + 2 * r, tokens);
    }
    for (; done < columns; done += 2)
      for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(to + done * tokens + 2 * r, &band[r][done], 2 * sizeof(T));
  }

  static void scatter(Head head, Layout layout, const A *from, A factor, T *to, A *d_bias) {
    for (int64_t column = 0; column < head.width; column += PIECE) {
      const int64_t columns = head.width - column < PIECE ? head.width - column : PIECE;
      A *sum = d_bias ? d_bias + column : nullptr;
      for (int64_t row = 0; row < head.tokens; row += 4) {
        const int64_t rows = head.tokens - row < 4 ? head.tokens - row : 4;
        T *out = to + row * head.stride + column;
        if (layout == Layout::ACROSS) {
          A band[4][PIECE];
          take_across(from + column * head.tokens + row, rows, columns, head.tokens, band);
          for (int64_t r = 0; r < rows; ++r) scatter_row(columns, band[r], factor, out + r * head.stride, sum);
        } else {
          for (int64_t r = 0; r < rows; ++r)
            scatter_row(columns, from + (row + r) * head.width + column, factor, out + r * head.stride, sum);
        }
      }
    }
  }

  // band[row][column] = from[column][row].
  static void take_across(const A *from, int64_t rows, int64_t columns, int64_t tokens, A (*band)[PIECE]) {
    int64_t done = 0;
    if constexpr (sizeof(A) == 4) {
      if (rows == 4)
        for (; done + 4 <= columns; done += 4) transpose(from + done * tokens, tokens, &band[0][done], PIECE);
    }
    for (; done < columns; ++done)
      for (int64_t r = 0; r < rows; ++r) band[r][done] = from[done * tokens + r];
  }

  static void scatter_row(int64_t width, const A *from, A factor, T *to, A *sum) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(to + i, from[i] * factor);
    if (!sum) return;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) sum[i] += from[i] * factor;
  }

  static void softmax(Rows rows, A *s, A *largest, A *over, T *p) {
    const int64_t width = rows.width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      A *at = s + row * width;
      T *out = p + row * width;
      A most = at[0], sum = 0;
#pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < width; ++i) most = at[i] > most ? at[i] : most;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) {
        at[i] = exponential(at[i] - most);
        sum += at[i];
      }
      const A share = 1 / sum;
      largest[row] = most;
      over[row] = share;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) store(out + i, at[i] * share);
    }
  }

  static void softmax_across(Rows rows, A *s, const A *largest, const A *over, T *p) {
    const int64_t width = rows.width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      A *at = s + row * width;
      T *out = p + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        at[i] = exponential(at[i] - largest[i]) * over[i];
        store(out + i, at[i]);
      }
    }
  }

  static void delta(Head head, const T *d_out, const T *out, A *to) {
    for (int64_t row = 0; row < head.tokens; ++row) {
      const T *d = d_out + row * head.stride, *o = out + row * head.stride;
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < head.width; ++i) sum += load(d + i) * load(o + i);
      to[row] = sum;
    }
  }

  static void softmax_across_backward(Rows rows, const A *p, const A *delta, const A *dp, T *ds, T *pairs) {
    const int64_t width = rows.width;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const A *weight = p + row * width, *in = dp + row * width;
      T *out = ds + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) store(out + i, weight[i] * (in[i] - delta[i]));
      if (pairs && row % 2) interleave(width, out - width, out, pairs + (row - 1) * width);
    }
  }

  static constexpr Kernels<T> all{norm,   gate,    gate_backward, norm_backward,  gelu,  gelu_backward,
                                  gather, scatter, softmax,       softmax_across, delta, softmax_across_backward};
};

} // namespace

#define JOINED(a, b) a##_##b
#define NAMED(a, b) JOINED(a, b)

extern const Kernels<float> NAMED(of_float, LEVEL);
extern const Kernels<double> NAMED(of_double, LEVEL);
extern const Kernels<Bf16> NAMED(of_bf16, LEVEL);
const Kernels<float> NAMED(of_float, LEVEL) = Loops<float>::all;
const Kernels<double> NAMED(of_double, LEVEL) = Loops<double>::all;
const Kernels<Bf16> NAMED(of_bf16, LEVEL) = Loops<Bf16>::all;

#ifdef CHOOSES

#ifdef __x86_64__
#define ALL(type, name)                                                                                                \
  extern const Kernels<type> name##_avx2, name##_avx512;                                                               \
  template <> const Kernels<type> &kernels<type>() {                                                                   \
    static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&              \
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");               \
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");                          \
    return avx512 ? name##_avx512 : avx2 ? name##_avx2 : name##_plain;                                                 \
  }
#else
#define ALL(type, name)                                                                                                \
  template <> const Kernels<type> &kernels<type>() { return name##_plain; }
#endif
ALL(float, of_float)
ALL(double, of_double)
ALL(Bf16, of_bf16)

#endif

} // namespace dualpath
