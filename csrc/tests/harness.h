// The test program: tests register themselves, a failed check prints where and goes on.

#pragma once

#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace fastviz {
namespace test {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

/// What is being tested just now; printed with a failure.
inline std::string& context() {
  static std::string text;
  return text;
}

void report(const char* file, int line, const std::string& what);

/// Sets the context: describe("channels ", 3, " places ", 5).
template <typename... Parts>
void describe(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  context() = text.str();
}

}  // namespace test
}  // namespace fastviz

#define TEST(NAME)                                                            \
  static void test_##NAME();                                                  \
  static const ::fastviz::test::Register register_##NAME(#NAME, test_##NAME); \
  static void test_##NAME()

#define CHECK(CONDITION)                                                       \
  do {                                                                         \
    if (!(CONDITION)) ::fastviz::test::report(__FILE__, __LINE__, #CONDITION); \
  } while (false)
