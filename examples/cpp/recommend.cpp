// Recommend in C++ with ONNX Runtime and no Python: one model file, item ids in, item ids out.
//
//   cmake -S examples/cpp -B examples/cpp/build && cmake --build examples/cpp/build
//   examples/cpp/build/recommend MODEL [ITEM_ID ...]    oldest item first; MODEL of `ipsrec export --profile edge`
//
// A service opens the model once and calls recommend for each request, as main does.

#include <onnxruntime_cxx_api.h>

#include <charconv>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// Best item first. A cold user is one without a known item: the items are the popular ones, the scores how often they
// were taken.
struct Recommendations {
  std::vector<std::string> item_ids;
  std::vector<float> scores;
  bool cold;
};

class Recommender {
 public:
  explicit Recommender(const std::filesystem::path& model) : session_(env_, model.c_str(), one_thread()) {
    std::set<std::string> inputs, outputs;
    size_t history = 0;
    for (size_t place = 0; place < session_.GetInputCount(); place++) {
      const std::string name = session_.GetInputNameAllocated(place, allocator_).get();
      if (name == "item_history") history = place;
      inputs.insert(name);
    }
    for (size_t place = 0; place < session_.GetOutputCount(); place++) {
      outputs.insert(session_.GetOutputNameAllocated(place, allocator_).get());
    }
    if (!inputs.count("item_history") || !inputs.count("lengths") || !outputs.count("item_ids")) {
      throw std::runtime_error("this is no edge model; write one with `ipsrec export --profile edge`");
    }
    const Ort::TypeInfo type = session_.GetInputTypeInfo(history);
    has_whole_ids_ = type.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    has_provider_switch_ = inputs.count("use_providers") > 0;
  }

  // Item ids oldest first, whole numbers as text, too. Unknown ones and none at all are fine.
  // Without use_providers all providers count as unknown, where the file was exported with --provider-switch.
  Recommendations recommend(const std::vector<std::string>& history, bool use_providers = true) {
    const std::vector<int64_t> shape{1, static_cast<int64_t>(history.size())}, one{1};
    std::vector<const char*> inputs{"item_history", "lengths"};
    std::vector<Ort::Value> values;
    if (has_whole_ids_) {
      values.push_back(Ort::Value::CreateTensor<int64_t>(allocator_, shape.data(), shape.size()));
      int64_t* ids = values.back().GetTensorMutableData<int64_t>();
      for (const std::string& text : history) *ids++ = to_int64(text);
    } else {
      values.push_back(
          Ort::Value::CreateTensor(allocator_, shape.data(), shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING));
      for (size_t place = 0; place < history.size(); place++) {
        values.back().FillStringTensorElement(history[place].c_str(), place);
      }
    }
    values.push_back(Ort::Value::CreateTensor<int64_t>(allocator_, one.data(), one.size()));
    *values.back().GetTensorMutableData<int64_t>() = shape[1];
    if (has_provider_switch_) {
      inputs.push_back("use_providers");
      values.push_back(Ort::Value::CreateTensor<bool>(allocator_, one.data(), one.size()));
      *values.back().GetTensorMutableData<bool>() = use_providers;
    }

    const std::vector<const char*> outputs{"item_ids", "scores", "counts", "cold"};
    const auto found = session_.Run(
        Ort::RunOptions(), inputs.data(), values.data(), inputs.size(), outputs.data(), outputs.size());
    const float* scores = found[1].GetTensorData<float>();
    const int64_t count = *found[2].GetTensorData<int64_t>();
    Recommendations best{{}, {scores, scores + count}, *found[3].GetTensorData<bool>()};
    for (int64_t place = 0; place < count; place++) {
      best.item_ids.push_back(
          has_whole_ids_ ? std::to_string(found[0].GetTensorData<int64_t>()[place])
                         : found[0].GetStringTensorElement(static_cast<size_t>(place)));
    }
    return best;
  }

 private:
  static Ort::SessionOptions one_thread() {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    return options;
  }

  static int64_t to_int64(const std::string& text) {
    int64_t id = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, id);
    if (stop != end || error == std::errc::invalid_argument) {
      throw std::runtime_error("item id \"" + text + "\" is not a whole number, and this model's ids are");
    }
    if (error == std::errc::result_out_of_range) {
      throw std::runtime_error("item id " + text + " does not fit into 64 bits");
    }
    return id;
  }

  Ort::Env env_{ORT_LOGGING_LEVEL_ERROR};
  Ort::AllocatorWithDefaultOptions allocator_;
  Ort::Session session_;
  bool has_whole_ids_ = false;
  bool has_provider_switch_ = false;
};

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "usage: recommend MODEL [ITEM_ID ...]\n";
    return 2;
  }
  try {
    Recommender recommender(arguments[1]);
    const Recommendations best = recommender.recommend({arguments + 2, arguments + count});
    if (best.cold) std::cerr << "no item of this history is known to the model: these are the popular items\n";
    std::cout << std::setprecision(std::numeric_limits<float>::max_digits10);
    for (size_t place = 0; place < best.item_ids.size(); place++) {
      std::cout << place + 1 << "\t" << best.item_ids[place] << "\t" << best.scores[place] << "\n";
    }
  } catch (const std::exception& error) {
    std::cerr << arguments[1] << ": " << error.what() << "\n";
    return 1;
  }
}
