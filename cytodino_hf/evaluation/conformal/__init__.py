"""Sets of classes that hold the true one at least as often as asked, and a bound on critical cells called safe."""
