# SPDX-License-Identifier: Apache-2.0
# Cross build for Jetson. GCC 12 is the compiler of Ubuntu 22.04's libstdc++, which JetPack 6 has.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++-12)
