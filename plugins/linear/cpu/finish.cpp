// SPDX-License-Identifier: Apache-2.0
#include "linear/cpu/finish.h"

#include "common/variants.h"

namespace fastmmoe {

FASTMMOE_VARIANTS(FinishFunction, finish_function)

FinishFunction finish_for_this_cpu() { return FASTMMOE_VARIANT(finish_function); }

}  // namespace fastmmoe
