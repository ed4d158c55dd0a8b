"""What every room needs: checks of arguments, files, trees of tensors, precision, transforms."""
