// The scores of a head are never kept: they are made again in the backward pass, some rows at a time, which then lie in the
// cache for all that is done with them.
//
// The backward pass works on transposed scores, a row for each key, so that every matrix but k is made where the next product
// wants it: P^T = exp(k q^T - largest) over, dP^T = v dO^T, dS^T = P^T (dP^T - delta); dV = P^T dO, dK = dS^T q, dQ^T = k^T dS^T.
//
// Sums are f32 where the tokens are bf16, and so are scores: in bf16 a score of 100 would be off by 1/4, and its weight by as
// much. Operands of products are bf16, weights and gradients of scores too, as in PyTorch's attention.
#include "attention.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/CPUBlas.h>

#include "kernels.h"

namespace dualpath {
namespace {

using torch::Tensor;

// Rows of scores at a time: with 256 tokens 64 kB in f32.
constexpr int64_t PIECE = 64;

template <typename T> T *data(const Tensor &tensor) { return static_cast<T *>(tensor.data_ptr()); }

// c = a b, or c += a b: a is `[m, k]` with rows `stride` apart, b as `Operand` says, c `[m, n]` dense.
struct Shape {
  int64_t m, n, k, stride;
};

void brgemm(Shape s, const float *a, const float *b, float *c, bool add) {
  at::native::cpublas::brgemm(s.m, s.n, s.k, s.stride, s.n, s.n, add, a, b, c, false);
}
void brgemm(Shape s, const Bf16 *a, const Bf16 *b, float *c, bool add) {
  at::native::cpublas::brgemm(s.m, s.n, s.k, s.stride, s.n, s.n, add, reinterpret_cast<const c10::BFloat16 *>(a),
                              reinterpret_cast<const c10::BFloat16 *>(b), c, true);
}

// Whether oneDNN has its small products for this dtype and processor.
template <typename T> bool has_brgemm() {
  if constexpr (std::is_same_v<T, double>) {
    return false;
  } else {
    static const bool has = [] {
      try {
        const T a[4]{}, b[4]{};
        float c[4];
        brgemm({2, 2, 2, 2}, a, b, c, false);
        at::native::cpublas::brgemm_release();
        return true;
      } catch (const std::exception &) { // c10::Error, or oneDNN's own
        return false;
      }
    }();
    return has;
  }
}

// How a matrix lies as the right side of a product, itself or transposed.
template <typename T> struct Operand {
  static constexpr Layout ITSELF = Layout::ROWS, TRANSPOSED = Layout::ACROSS;
};
template <> struct Operand<Bf16> {
  static constexpr Layout ITSELF = Layout::PAIRS, TRANSPOSED = Layout::PAIRS_ACROSS;
};

template <typename T> void multiply(Shape s, const T *a, const T *b, Accumulator<T> *c, bool add = false) {
  if constexpr (!std::is_same_v<T, double>) {
    if (has_brgemm<T>()) return brgemm(s, a, b, c, add);
  }
  if constexpr (std::is_same_v<T, Bf16>) {
    TORCH_INTERNAL_ASSERT(false, "bf16 goes through brgemm alone");
  } else {
    const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
    const Tensor left = at::from_blob(const_cast<T *>(a), {s.m, s.k}, {s.stride, 1}, options);
    const Tensor right = at::from_blob(const_cast<T *>(b), {s.k, s.n}, options);
    Tensor result = at::from_blob(c, {s.m, s.n}, options);
    at::addmm_out(result, result, left, right, add ? 1 : 0, 1);
  }
}

// Attention in one dtype.
template <typename T> struct Attention {
  using A = Accumulator<T>;
  enum Which { Q, K, V };

  const Kernels<T> &run = kernels<T>();
  AttentionSizes size;
  at::TensorOptions values, sums;

  Attention(const Tensor &qkv, AttentionSizes size)
      : size(size), values(qkv.options()), sums(qkv.options().dtype(c10::CppTypeToScalarType<A>::value)) {}

  int64_t tokens() const { return size.tokens; }
  int64_t width() const { return size.width / size.heads; }
  A factor() const { return A(1 / std::sqrt(static_cast<double>(width()))); }

  // A head of qkv, or of something as wide as it.
  struct Place {
    int64_t image, head;
    Head in_qkv, in_tokens;

    int64_t column(Which which) const { return which * in_tokens.stride + head * in_tokens.width; }
    int64_t of_qkv(Which which) const { return image * in_qkv.tokens * in_qkv.stride + column(which); }
    int64_t of_tokens() const { return image * in_tokens.tokens * in_tokens.stride + head * in_tokens.width; }
  };

  // `begin_task` makes, on the thread of some heads, what works on one of them.
  template <typename F> void over_heads(F &&begin_task) const {
    at::parallel_for(0, size.images * size.heads, 1, [&](int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView no_autograd;
      auto task = begin_task();
      for (int64_t i = begin; i < end; ++i)
        task(Place{i / size.heads, i % size.heads, {tokens(), width(), 3 * size.width}, {tokens(), width(), size.width}});
      if (has_brgemm<T>()) at::native::cpublas::brgemm_release();
    });
  }

  // q, of which the factor is a part, k or v.
  void take(Which which, const Place &at, const Tensor &qkv, const Tensor &bias, Layout layout, const Tensor &to) const {
    run.gather(at.in_qkv, data<T>(qkv) + at.of_qkv(which), data<T>(bias) + at.column(which), which == Q ? factor() : A(1),
               layout, data<T>(to));
  }

  Tensor operand() const { return at::empty({tokens(), width()}, values); }
  Tensor summed() const { return at::empty({tokens(), width()}, sums); }
  Tensor scores(at::TensorOptions options) const { return at::empty({std::min(PIECE, tokens()), tokens()}, options); }

  // The pieces of the rows of the scores: begin and number.
  template <typename F> void over_pieces(F &&body) const {
    for (int64_t begin = 0; begin < tokens(); begin += PIECE) body(begin, std::min(PIECE, tokens() - begin));
  }

  Tensor forward(const Tensor &qkv, const Tensor &bias, Tensor &statistics) const {
    Tensor out = at::empty({size.images * tokens(), size.width}, values);
    over_heads([&] {
      return [&, q = operand(), k = operand(), v = operand(), o = summed(), s = scores(sums),
              p = scores(values)](const Place &at) {
        take(Q, at, qkv, bias, Layout::ROWS, q);
        take(K, at, qkv, bias, Operand<T>::TRANSPOSED, k);
        take(V, at, qkv, bias, Operand<T>::ITSELF, v);
        A *largest = data<A>(statistics) + (at.image * size.heads + at.head) * 2 * tokens();
        over_pieces([&](int64_t row, int64_t rows) {
          multiply<T>({rows, tokens(), width(), width()}, data<T>(q) + row * width(), data<T>(k), data<A>(s));
          run.softmax({0, rows, tokens()}, data<A>(s), largest + row, largest + tokens() + row, data<T>(p));
          multiply<T>({rows, width(), tokens(), tokens()}, data<T>(p), data<T>(v), data<A>(o) + row * width());
        });
        run.scatter(at.in_tokens, Layout::ROWS, data<A>(o), A(1), data<T>(out) + at.of_tokens(), nullptr);
      };
    });
    return out;
  }

  Tensor backward(const Tensor &d_out, const Tensor &out, const Tensor &qkv, const Tensor &bias, const Tensor &statistics,
                  Tensor &d_bias) const {
    Tensor d_qkv = at::empty({size.images * tokens(), 3 * size.width}, values);
    constexpr bool pairs = Operand<T>::ITSELF == Layout::PAIRS;
    over_heads([&] {
      return [&, q = operand(), q_across = operand(), k = operand(), k_across = operand(), v = operand(), d = operand(),
              d_across = operand(), dq = summed(), dk = summed(), dv = summed(), p_sums = scores(sums), p = scores(values),
              dp = scores(sums), ds = scores(values), ds_pairs = scores(values),
              delta = at::empty({tokens()}, sums)](const Place &at) {
        take(Q, at, qkv, bias, Operand<T>::ITSELF, q);
        take(Q, at, qkv, bias, Operand<T>::TRANSPOSED, q_across);
        take(K, at, qkv, bias, Layout::ROWS, k);
        take(K, at, qkv, bias, Layout::ACROSS, k_across);
        take(V, at, qkv, bias, Layout::ROWS, v);
        const T *d_head = data<T>(d_out) + at.of_tokens();
        run.gather(at.in_tokens, d_head, nullptr, A(1), Operand<T>::ITSELF, data<T>(d));
        run.gather(at.in_tokens, d_head, nullptr, A(1), Operand<T>::TRANSPOSED, data<T>(d_across));
        run.delta(at.in_tokens, d_head, data<T>(out) + at.of_tokens(), data<A>(delta));
        const A *largest = data<A>(statistics) + (at.image * size.heads + at.head) * 2 * tokens();
        over_pieces([&](int64_t row, int64_t rows) { // of keys
          const Rows piece{0, rows, tokens()};
          const Shape score{rows, tokens(), width(), width()}, gradient{rows, width(), tokens(), tokens()};
          multiply<T>(score, data<T>(k) + row * width(), data<T>(q_across), data<A>(p_sums));
          run.softmax_across(piece, data<A>(p_sums), largest, largest + tokens(), data<T>(p));
          multiply<T>(gradient, data<T>(p), data<T>(d), data<A>(dv) + row * width());
          multiply<T>(score, data<T>(v) + row * width(), data<T>(d_across), data<A>(dp));
          run.softmax_across_backward(piece, data<A>(p_sums), data<A>(delta), data<A>(dp), data<T>(ds),
                                      pairs ? data<T>(ds_pairs) : nullptr);
          multiply<T>(gradient, data<T>(ds), data<T>(q), data<A>(dk) + row * width()); // q holds the factor already
          multiply<T>({width(), tokens(), rows, tokens()}, data<T>(k_across) + row, data<T>(pairs ? ds_pairs : ds),
                      data<A>(dq), row > 0);
        });
        const auto put = [&](Which which, const Tensor &from, Layout layout) {
          run.scatter(at.in_qkv, layout, data<A>(from), which == Q ? factor() : A(1), data<T>(d_qkv) + at.of_qkv(which),
                      data<A>(d_bias) + at.image * 3 * size.width + at.column(which));
        };
        put(Q, dq, Layout::ACROSS);
        put(K, dk, Layout::ROWS);
        put(V, dv, Layout::ROWS);
      };
    });
    return d_qkv;
  }
};

// bf16 in the layout of pairs wants an even number of each, and a processor that has such products.
bool in_f32(const Tensor &qkv, AttentionSizes size) {
  return qkv.scalar_type() == at::kBFloat16 &&
         (size.tokens % 2 || size.width / size.heads % 2 || !has_brgemm<Bf16>());
}

template <typename F> auto in_dtype(const Tensor &qkv, AttentionSizes size, F &&body) {
  switch (qkv.scalar_type()) {
  case at::kDouble:
    return body(Attention<double>(qkv, size));
  case at::kBFloat16:
    return body(Attention<Bf16>(qkv, size));
  default:
    return body(Attention<float>(qkv, size));
  }
}

} // namespace

Tensor attention(const Tensor &qkv, const Tensor &bias, AttentionSizes size, Tensor &statistics) {
  if (in_f32(qkv, size)) return attention(qkv.to(at::kFloat), bias.to(at::kFloat), size, statistics).to(at::kBFloat16);
  return in_dtype(qkv, size, [&](auto attention) { return attention.forward(qkv, bias, statistics); });
}

Tensor attention_backward(const Tensor &d_out, const Tensor &out, const Tensor &qkv, const Tensor &bias,
                          const Tensor &statistics, AttentionSizes size, Tensor &d_bias) {
  if (in_f32(qkv, size)) {
    return attention_backward(d_out.to(at::kFloat), out.to(at::kFloat), qkv.to(at::kFloat), bias.to(at::kFloat), statistics,
                              size, d_bias)
        .to(at::kBFloat16);
  }
  return in_dtype(qkv, size, [&](auto attention) {
    return attention.backward(d_out, out, qkv, bias, statistics, d_bias);
  });
}

} // namespace dualpath
