// Loops over rows that a transformer block needs between its matrix products, on a CPU.
//
// Plain loops that the compiler vectorises; `kernels.cpp` is compiled once for each set of instructions, and `kernels<T>()`
// picks one when the program runs. No header of libtorch is seen there: an inline function of one, compiled for newer
// instructions, could end up in the rest of the program.
#pragma once

#include <cstdint>

namespace dualpath {

// bfloat16, as bits.
struct Bf16 {
  uint16_t bits;
};

// What sums and statistics of a T are kept in.
template <typename T> struct AccumulatorOf {
  using type = float;
};
template <> struct AccumulatorOf<double> {
  using type = double;
};
template <typename T> using Accumulator = typename AccumulatorOf<T>::type;

// Rows `begin .. end` of matrices whose rows lie one behind the other, `width` values each.
struct Rows {
  int64_t begin, end, width;
};

// Parts of a modulation, in this order in its row of 6 * width values.
enum Part { SHIFT_MSA, SCALE_MSA, GATE_MSA, SHIFT_MLP, SCALE_MLP, GATE_MLP, PARTS };

// A modulation without its bias: `[rows, 6 * width]`. Row r of the tokens uses row r / tokens_per_row.
template <typename T> struct Modulation {
  const T *values, *bias;
  int64_t tokens_per_row;
};

// Gradients of a modulation: `tokens` has a row for each token or is null; `sum` is one row, to which all rows are added.
template <typename T> struct ModulationGrad {
  T *tokens;
  Accumulator<T> *sum;
};

// A matrix of `tokens` rows and `width` columns inside a wider one, a row every `stride` values.
struct Head {
  int64_t tokens, width, stride;
};

// How a matrix `[tokens, width]` lies in memory as an operand of a product.
enum class Layout {
  ROWS,
  ACROSS,       // transposed, `[width, tokens]`
  PAIRS,        // `[tokens / 2, width, 2]`: rows 2 i and 2 i + 1 lie together, value by value. Of bf16 alone, as the next.
  PAIRS_ACROSS, // `[width / 2, tokens, 2]`
};

template <typename T> struct Kernels {
  using A = Accumulator<T>;

  // h = LN(x) (1 + scale) + shift, eps 1e-6; keeps mean and 1 / deviation of each row.
  void (*norm)(Rows, const T *x, Modulation<T>, Part shift, Part scale, T *h, A *mean, A *rstd);
  // y = x + gate (a + bias).
  void (*gate)(Rows, const T *x, const T *a, const T *bias, Modulation<T>, Part gate, T *y);
  // The gradients of `gate` towards a (whose sum over rows is added to d_bias) and the modulation.
  void (*gate_backward)(Rows, const T *dy, const T *a, const T *bias, Modulation<T>, Part gate, T *da, A *d_bias,
                        ModulationGrad<T>);
  // dx = d_residual + the gradient of `norm` from dh.
  void (*norm_backward)(Rows, const T *dh, const T *x, const A *mean, const A *rstd, const T *d_residual, Modulation<T>,
                        Part shift, Part scale, T *dx, ModulationGrad<T>);

  // g = GELU(f + bias), tanh form.
  void (*gelu)(Rows, const T *f, const T *bias, T *g);
  // Makes df of dg in place, and g once more; the sum of df over rows is added to d_bias.
  void (*gelu_backward)(Rows, const T *f, const T *bias, T *dg, T *g, A *d_bias);

  // to = (from + bias) factor in this layout; bias may be null.
  void (*gather)(Head, const T *from, const T *bias, A factor, Layout, T *to);
  // to = from factor, from a dense matrix in ROWS or ACROSS; the sum over tokens is added to
  // d_bias, which may be null.
  void (*scatter)(Head, Layout, const A *from, A factor, T *to, A *d_bias);
  // p = softmax(s) over each row of `width` scores, of which s does not survive. Keeps two values of each row, the largest score
  // and 1 / sum(exp(s - largest)): their logarithm in one value would lose digits where scores are large. p may be s.
  void (*softmax)(Rows, A *s, A *largest, A *over, T *p);
  // The same once more, into s and into p, of scores whose columns are the rows of before.
  void (*softmax_across)(Rows, A *s, const A *largest, const A *over, T *p);
  // delta of each row: the sum of d_out * out over the head's columns.
  void (*delta)(Head, const T *d_out, const T *out, A *delta);
  // ds = p (dp - delta), with the columns that `softmax_across` has; ds may be dp. `pairs` may be null: ds once more, in PAIRS.
  void (*softmax_across_backward)(Rows, const A *p, const A *delta, const A *dp, T *ds, T *pairs);
};

// For float, double and Bf16.
template <typename T> const Kernels<T> &kernels();
template <> const Kernels<float> &kernels<float>();
template <> const Kernels<double> &kernels<double>();
template <> const Kernels<Bf16> &kernels<Bf16>();

} // namespace dualpath
