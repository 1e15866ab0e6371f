"""Face features: landmarks, 3D morphable model, fitting."""
