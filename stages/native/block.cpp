// One block of the transformer on a CPU, forward and backward by hand.
//
// Between the products, which are ATen's, there is one pass over memory where composed operations make five to ten: biases,
// modulation, gate, residual and their gradients, sums over rows included, are parts of it. GELU's output and the weights
// of the attention are computed again in the backward pass and not kept.
//
// `attention.cpp` has what happens among tokens.
#include "native.h"

#include <ATen/Parallel.h>

#include "attention.h"
#include "guarded.h"
#include "kernels.h"

namespace {

using dualpath::Accumulator;
using dualpath::Bf16;
using dualpath::Kernels;
using dualpath::Modulation;
using dualpath::ModulationGrad;
using dualpath::Part;
using dualpath::PARTS;
using dualpath::Rows;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum Weight { ADA_W, ADA_B, QKV_W, QKV_B, PROJ_W, PROJ_B, FC1_W, FC1_B, FC2_W, FC2_B };

struct Sizes {
  int64_t images, tokens, width, heads, hidden;
  bool per_token;

  int64_t rows() const { return images * tokens; }
  dualpath::AttentionSizes attention() const { return {images, tokens, width, heads}; }
  int64_t modulated() const { return per_token ? 1 : tokens; }
};

// Null where there is none.
template <typename T> T *data(const Tensor &tensor) {
  return tensor.defined() ? static_cast<T *>(tensor.data_ptr()) : nullptr;
}

// All of a block in one dtype.
template <typename T> struct Block {
  using A = Accumulator<T>;

  const Kernels<T> &run = dualpath::kernels<T>();
  Sizes size;
  at::TensorOptions values, sums;

  Block(const Tensor &x, Sizes size)
      : size(size), values(x.options()), sums(x.options().dtype(c10::CppTypeToScalarType<A>::value)) {}

  Tensor matrix(int64_t columns) const { return at::empty({size.rows(), columns}, values); }
  Tensor statistic() const { return at::empty({size.rows()}, sums); }

  Modulation<T> modulation(const Tensor &m, const Tensor &bias) const {
    return {data<T>(m), data<T>(bias), size.modulated()};
  }

  // Rows in pieces of some work each, on all threads.
  template <typename F> void over_rows(int64_t width, F &&body) const {
    at::parallel_for(0, size.rows(), std::max<int64_t>(1, 16384 / width),
                     [&](int64_t begin, int64_t end) { body(Rows{begin, end, width}); });
  }

  // The rows of each image on one thread, which may then add to sums of that image: these do not depend on the number
  // of threads.
  template <typename F> void over_images(int64_t width, F &&body) const {
    at::parallel_for(0, size.images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image)
        body(image, Rows{image * size.tokens, (image + 1) * size.tokens, width});
    });
  }

  Tensor sums_of_images(int64_t width) const { return at::zeros({size.images, width}, sums); }
  Tensor summed(const Tensor &of_images) const { return of_images.sum(0).to(values.dtype()); }

  // All that the backward pass needs besides the weights.
  enum Saved { M, H1, MEAN1, RSTD1, QKV, STATISTICS, MIXED, A1, X2, H2, MEAN2, RSTD2, F, A2 };

  Tensor forward(const Tensor &x, const Tensor &condition, const variable_list &w, variable_list &saved) const {
    const int64_t width = size.width;
    Tensor m = at::mm(condition, w[ADA_W].t());
    const auto modulation = this->modulation(m, w[ADA_B]);

    Tensor h1 = matrix(width), mean1 = statistic(), rstd1 = statistic();
    over_rows(width, [&](Rows rows) {
      run.norm(rows, data<T>(x), modulation, dualpath::SHIFT_MSA, dualpath::SCALE_MSA, data<T>(h1), data<A>(mean1),
               data<A>(rstd1));
    });
    Tensor qkv = at::mm(h1, w[QKV_W].t());
    Tensor statistics = at::empty({size.images * size.heads, 2, size.tokens}, sums);
    Tensor mixed = dualpath::attention(qkv, w[QKV_B], size.attention(), statistics);
    Tensor a1 = at::mm(mixed, w[PROJ_W].t());

    Tensor x2 = matrix(width), h2 = matrix(width), mean2 = statistic(), rstd2 = statistic();
    over_rows(width, [&](Rows rows) {
      for (int64_t row = rows.begin; row < rows.end; ++row) { // one row at a time, so that the second pass finds it in L1
        const Rows one{row, row + 1, width};
        run.gate(one, data<T>(x), data<T>(a1), data<T>(w[PROJ_B]), modulation, dualpath::GATE_MSA, data<T>(x2));
        run.norm(one, data<T>(x2), modulation, dualpath::SHIFT_MLP, dualpath::SCALE_MLP, data<T>(h2), data<A>(mean2),
                 data<A>(rstd2));
      }
    });
    Tensor f = at::mm(h2, w[FC1_W].t());
    Tensor g = matrix(size.hidden);
    over_rows(size.hidden, [&](Rows rows) { run.gelu(rows, data<T>(f), data<T>(w[FC1_B]), data<T>(g)); });
    Tensor a2 = at::mm(g, w[FC2_W].t());
    Tensor y = matrix(width);
    over_rows(width, [&](Rows rows) {
      run.gate(rows, data<T>(x2), data<T>(a2), data<T>(w[FC2_B]), modulation, dualpath::GATE_MLP, data<T>(y));
    });
    saved = {m, h1, mean1, rstd1, qkv, statistics, mixed, a1, x2, h2, mean2, rstd2, f, a2};
    return y;
  }

  // Gradients of x, the condition and the weights, in this order. Empties `s` as it goes along.
  variable_list backward(const Tensor &dy, const Tensor &x, const Tensor &condition, variable_list &s,
                         const variable_list &w) const {
    const int64_t width = size.width;
    const auto modulation = this->modulation(s[M], w[ADA_B]);
    Tensor dm_tokens = size.per_token ? matrix(PARTS * width) : Tensor();
    Tensor dm_sums = sums_of_images(PARTS * width);
    auto dm = [&](int64_t image) {
      return ModulationGrad<T>{size.per_token ? data<T>(dm_tokens) : nullptr, data<A>(dm_sums) + image * PARTS * width};
    };

    Tensor d_a2 = matrix(width), d_fc2_b = sums_of_images(width);
    over_images(width, [&](int64_t image, Rows rows) {
      run.gate_backward(rows, data<T>(dy), data<T>(s[A2]), data<T>(w[FC2_B]), modulation, dualpath::GATE_MLP,
                        data<T>(d_a2), data<A>(d_fc2_b) + image * width, dm(image));
    });
    s[A2].reset();
    Tensor d_f = at::mm(d_a2, w[FC2_W]), g = matrix(size.hidden), d_fc1_b = sums_of_images(size.hidden);
    over_images(size.hidden, [&](int64_t image, Rows rows) {
      run.gelu_backward(rows, data<T>(s[F]), data<T>(w[FC1_B]), data<T>(d_f), data<T>(g),
                        data<A>(d_fc1_b) + image * size.hidden);
    });
    s[F].reset();
    Tensor d_fc2_w = at::mm(d_a2.t(), g);
    g.reset();
    d_a2.reset();
    Tensor d_fc1_w = at::mm(d_f.t(), s[H2]);
    s[H2].reset();
    Tensor d_h2 = at::mm(d_f, w[FC1_W]);
    d_f.reset();

    Tensor d_x2 = matrix(width), d_a1 = matrix(width), d_proj_b = sums_of_images(width);
    over_images(width, [&](int64_t image, Rows rows) {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const Rows one{row, row + 1, width};
        run.norm_backward(one, data<T>(d_h2), data<T>(s[X2]), data<A>(s[MEAN2]), data<A>(s[RSTD2]), data<T>(dy),
                          modulation, dualpath::SHIFT_MLP, dualpath::SCALE_MLP, data<T>(d_x2), dm(image));
        run.gate_backward(one, data<T>(d_x2), data<T>(s[A1]), data<T>(w[PROJ_B]), modulation, dualpath::GATE_MSA,
                          data<T>(d_a1), data<A>(d_proj_b) + image * width, dm(image));
      }
    });
    s[X2].reset();
    s[A1].reset();
    Tensor d_proj_w = at::mm(d_a1.t(), s[MIXED]);
    Tensor d_mixed = at::mm(d_a1, w[PROJ_W]);
    Tensor d_qkv_b = sums_of_images(3 * width);
    Tensor d_qkv = dualpath::attention_backward(d_mixed, s[MIXED], s[QKV], w[QKV_B], s[STATISTICS], size.attention(), d_qkv_b);
    s[QKV].reset();
    s[MIXED].reset();
    Tensor d_qkv_w = at::mm(d_qkv.t(), s[H1]);
    s[H1].reset();
    Tensor d_h1 = at::mm(d_qkv, w[QKV_W]);
    d_qkv.reset();

    Tensor dx = matrix(width);
    over_images(width, [&](int64_t image, Rows rows) {
      run.norm_backward(rows, data<T>(d_h1), data<T>(x), data<A>(s[MEAN1]), data<A>(s[RSTD1]), data<T>(d_x2),
                        modulation, dualpath::SHIFT_MSA, dualpath::SCALE_MSA, data<T>(dx), dm(image));
    });
    Tensor d_m = size.per_token ? dm_tokens : dm_sums.to(values.dtype());
    Tensor d_ada_w = at::mm(d_m.t(), condition);
    Tensor d_condition = at::mm(d_m, w[ADA_W]);
    return {dx,       d_condition,      d_ada_w, summed(dm_sums),  d_qkv_w, summed(d_qkv_b),
            d_proj_w, summed(d_proj_b), d_fc1_w, summed(d_fc1_b), d_fc2_w, summed(d_fc2_b)};
  }
};

template <typename F> auto in_dtype(const Tensor &x, Sizes size, F &&body) {
  switch (x.scalar_type()) {
  case at::kFloat:
    return body(Block<float>(x, size));
  case at::kDouble:
    return body(Block<double>(x, size));
  case at::kBFloat16:
    return body(Block<Bf16>(x, size));
  default:
    throw std::invalid_argument("a block computes in f32, f64 or bf16");
  }
}

struct BlockFunction : torch::autograd::Function<BlockFunction> {
  static Tensor forward(AutogradContext *context, Tensor x, Tensor condition, Tensor ada_w, Tensor ada_b, Tensor qkv_w,
                        Tensor qkv_b, Tensor proj_w, Tensor proj_b, Tensor fc1_w, Tensor fc1_b, Tensor fc2_w, Tensor fc2_b,
                        int64_t heads) {
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    TORCH_CHECK_VALUE(x.dim() == 3 && condition.dim() == 3, "tokens and condition of a block have three dimensions, not ",
                      x.sizes(), " and ", condition.sizes());
    TORCH_CHECK_VALUE(fc1_w.dim() == 2, "fc1 is a matrix, not ", fc1_w.sizes());
    const int64_t d = x.size(2), hidden = fc1_w.size(0);
    TORCH_CHECK_VALUE(heads > 0 && d % heads == 0, heads, " heads do not divide a width of ", d);
    const bool per_token = condition.size(1) != 1 || x.size(1) == 1;
    check(x, {x.size(0), x.size(1), d}, x, "tokens");
    check(condition, {x.size(0), per_token ? x.size(1) : 1, d}, x, "condition");
    const variable_list weights{ada_w, ada_b, qkv_w, qkv_b, proj_w, proj_b, fc1_w, fc1_b, fc2_w, fc2_b};
    const int64_t shapes[][2] = {{6 * d, d}, {3 * d, d}, {d, d}, {hidden, d}, {d, hidden}};
    for (size_t i = 0; i < 5; ++i) {
      check(weights[2 * i], {shapes[i][0], shapes[i][1]}, x, "weight");
      check(weights[2 * i + 1], {shapes[i][0]}, x, "bias");
      TORCH_CHECK_VALUE(weights[2 * i].is_contiguous() && weights[2 * i + 1].is_contiguous(),
                        "the weights of a block lie one value behind the other");
    }
    const Sizes size{x.size(0), x.size(1), d, heads, hidden, per_token};
    variable_list saved;
    Tensor y = in_dtype(x, size, [&](auto block) {
      return block.forward(x.contiguous().view({size.rows(), d}), condition.contiguous().view({-1, d}), weights, saved);
    });
    variable_list inputs{x, condition};
    inputs.insert(inputs.end(), weights.begin(), weights.end());
    context->save_for_backward(inputs);
    // Not as saved variables, which live until the whole backward pass of this node is done.
    context->saved_data["kept"] = std::move(saved);
    context->saved_data["heads"] = heads;
    return y.view(x.sizes());
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "a block has no second derivative");
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    const auto kept = context->saved_data.find("kept");
    TORCH_CHECK(kept != context->saved_data.end(), "a block goes backward once");
    // Unpacked here, which finds out whether one was changed in the meantime.
    const variable_list inputs = context->get_saved_variables();
    const Tensor &x = inputs[0], &condition = inputs[1];
    const variable_list weights(inputs.begin() + 2, inputs.end());
    variable_list saved = kept->second.toTensorVector();
    context->saved_data.erase(kept);
    const int64_t d = x.size(2);
    const bool per_token = condition.size(1) != 1 || x.size(1) == 1;
    const Sizes size{x.size(0), x.size(1), d, context->saved_data["heads"].toInt(), weights[FC1_W].size(0), per_token};
    const Tensor dy = gradients[0].contiguous().view({size.rows(), d});
    const Tensor rows = x.contiguous().view({size.rows(), d}), conditions = condition.contiguous().view({-1, d});
    variable_list found =
        in_dtype(dy, size, [&](auto block) { return block.backward(dy, rows, conditions, saved, weights); });
    found[0] = found[0].view(x.sizes());
    found[1] = found[1].view(condition.sizes());
    found.emplace_back(); // of the number of heads
    return found;
  }

private:
  static void check(const Tensor &tensor, at::IntArrayRef shape, const Tensor &like, const char *what) {
    TORCH_CHECK_VALUE(tensor.is_cpu() && tensor.scalar_type() == like.scalar_type(), "the ", what,
                      " of a block lies on the CPU and has the dtype of its tokens");
    TORCH_CHECK_VALUE(tensor.sizes() == shape, "the ", what, " of a block has the shape ", shape, ", not ",
                      tensor.sizes());
  }
};

} // namespace

char *dualpath_block(torch::Tensor *x, torch::Tensor *condition, torch::Tensor *const *w, int64_t heads,
                     torch::Tensor **out) {
  return guarded([&] {
    *out = new torch::Tensor(BlockFunction::apply(*x, *condition, *w[0], *w[1], *w[2], *w[3], *w[4], *w[5], *w[6], *w[7],
                                                  *w[8], *w[9], heads));
  });
}
