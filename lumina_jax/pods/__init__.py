"""Programs for TPU pods, compiled and measured without a pod."""
