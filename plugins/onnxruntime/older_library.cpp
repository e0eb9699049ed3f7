// SPDX-License-Identifier: Apache-2.0
// What headers of GCC 11 and later call and the C++ library of manylinux_2_28 lacks: with it the library
// loads there.
#include <new>

namespace std {

[[noreturn]] void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
