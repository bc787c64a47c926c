"""Which errors mean that a GPU's memory is full."""


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an error means that the GPU's memory is full, so that the same work in smaller parts may succeed.

    A library that allocates for itself fails with a status of its own: cuBLAS with CUBLAS_STATUS_ALLOC_FAILED, for
    the workspace of a first product. The driver's "CUDA error: out of memory" leaves the device usable as well.

    Args:
        fault: The error.
    """
    if type(fault).__name__ == "OutOfMemoryError":  # torch's; it is not imported here
        return True
    text = str(fault)
    return isinstance(fault, RuntimeError) and ("_STATUS_ALLOC_FAILED" in text or "CUDA error: out of memory" in text)
