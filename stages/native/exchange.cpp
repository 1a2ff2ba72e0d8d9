// Gradients are summed over the ranks while the backward pass still computes others.
//
// As DistributedDataParallel does it (Li et al. 2020, "PyTorch Distributed", section 3.2.3), on one flat buffer, of
// which buckets are slices. They are sent in a fixed order, since all ranks must call a group's collectives in the same
// one.
#include "c10d.h"

#include <exception>

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "gradients.h"
#include "guarded.h"

namespace {

struct Bucket {
  int64_t start, len;
  // The leaves `first .. end`, and how many of them this pass has not reached.
  size_t first, end, missing = 0;
};

class Exchange {
 public:
  Exchange(Group group, const std::vector<torch::Tensor> &leaves, torch::Tensor gradients, int64_t bucket)
      : group_(std::move(group)), leaves_(leaves), gradients_(std::move(gradients)) {
    int64_t end = gradients_.numel();
    std::vector<size_t> bucket_of(leaves.size());
    for (size_t i = leaves.size(); i-- > 0;) {
      if (buckets_.empty() || buckets_.back().len >= bucket) buckets_.push_back({end, 0, i + 1, i + 1});
      Bucket &open = buckets_.back();
      end -= leaves[i].numel();
      open.start = end;
      open.len += leaves[i].numel();
      open.first = i;
      bucket_of[i] = buckets_.size() - 1;
    }
    TORCH_CHECK(end == 0, "the parameters are not those of the gradients");
    for (size_t i = 0; i < leaves.size(); ++i) {
      auto node = torch::autograd::impl::grad_accumulator(leaves[i]);
      TORCH_CHECK(node, "a parameter wants no gradient");
      using torch::autograd::variable_list;
      auto arrived = [this, bucket = bucket_of[i]](const variable_list &out, const variable_list &) {
        arrive(bucket);
        return out;
      };
      auto key = node->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(arrived));
      // A leaf holds its node weakly: it and the hook live as long as this.
      nodes_.emplace_back(std::move(node), key);
    }
  }

  Exchange(const Exchange &) = delete;
  Exchange &operator=(const Exchange &) = delete;

  ~Exchange() {
    for (auto &[node, key] : nodes_) node->del_post_hook(key);
  }

  void arm(bool add) {
    for (Bucket &bucket : buckets_) bucket.missing = bucket.end - bucket.first;
    add_ = add;
    sent_ = 0;
    works_.clear();
    failure_ = nullptr;
    armed_ = true;
  }

  size_t buckets() const { return buckets_.size(); }

  size_t finish() {
    const size_t early = sent_;
    armed_ = false;
    while (!failure_ && sent_ < buckets_.size()) send();
    if (failure_) std::rethrow_exception(failure_);
    for (Work &work : works_) work.wait();
    works_.clear();
    return early;
  }

 private:
  void arrive(size_t bucket) {
    if (!armed_) return;
    buckets_[bucket].missing -= 1;
    while (!failure_ && sent_ < buckets_.size() && buckets_[sent_].missing == 0) send();
  }

  // An exception must not leave through the backward pass: whoever finishes is told.
  void send() {
    try {
      torch::NoGradGuard no_grad;
      const Bucket &bucket = buckets_[sent_];
      std::vector<at::Tensor> slice{gradients_.narrow(0, bucket.start, bucket.len)};
      int64_t start = bucket.start;
      for (size_t i = bucket.first; i < bucket.end; ++i) {
        const torch::Tensor &leaf = leaves_[i];
        take_gradient(leaf, gradients_.narrow(0, start, leaf.numel()).view_as(leaf), add_);
        start += leaf.numel();
      }
      works_.push_back(group_.begin([&](auto &backend) { return backend.allreduce(slice); }));
      sent_ += 1;
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  Group group_;
  std::vector<torch::Tensor> leaves_;
  torch::Tensor gradients_;
  // In the order in which they are sent.
  std::vector<Bucket> buckets_;
  std::vector<std::pair<std::shared_ptr<torch::autograd::Node>, uintptr_t>> nodes_;
  std::vector<Work> works_;
  size_t sent_ = 0;
  bool armed_ = false, add_ = false;
  std::exception_ptr failure_;
};

} // namespace

char *dualpath_exchange_new(void *group, torch::Tensor *const *leaves, size_t count, torch::Tensor *gradients,
                            int64_t bucket, void **exchange) {
  return guarded([&] {
    std::vector<torch::Tensor> parameters;
    for (size_t i = 0; i < count; ++i) parameters.push_back(*leaves[i]);
    *exchange = new Exchange(*static_cast<Group *>(group), parameters, *gradients, bucket);
  });
}

char *dualpath_exchange_arm(void *exchange, bool add) {
  return guarded([&] { static_cast<Exchange *>(exchange)->arm(add); });
}

char *dualpath_exchange_finish(void *exchange, int64_t *early, int64_t *buckets) {
  return guarded([&] {
    *early = static_cast<int64_t>(static_cast<Exchange *>(exchange)->finish());
    *buckets = static_cast<int64_t>(static_cast<Exchange *>(exchange)->buckets());
  });
}

void dualpath_exchange_free(void *exchange) { delete static_cast<Exchange *>(exchange); }
