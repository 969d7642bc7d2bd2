// torch's CPU build knows no device "cuda", and the other one asks a driver for it. With this fake tensors may be there
// in both: nothing is ever computed.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>)
}
