"""Where the numbers and pictures of a run are shown: TensorBoard, Weights & Biases, MLflow (``log.to``)."""
