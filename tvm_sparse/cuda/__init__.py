"""What the compiler and the loader must both know about CUDA: archs, the fat binary container, where CUDA lies.

Standard library only, so that the loader stays free of the compiler.
"""
