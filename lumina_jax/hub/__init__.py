"""The Hugging Face hub: files of its repositories, fetched into its own cache, resumed, verified, and found there again offline."""
