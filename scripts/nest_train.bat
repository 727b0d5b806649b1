@echo off
rem Train with the port and record it. Arguments are configuration overrides, Hydra's syntax:
rem     scripts\nest_train.bat size=tiny save_steps=0,1,2 batches=3 overwrite=true
rem Runs in .venv\nest, or on the Python that NEST_PYTHON names; from any folder.
setlocal
for %%I in ("%~dp0..") do set "root=%%~fI"
set "python=%root%\.venv\nest\Scripts\python.exe"
if defined NEST_PYTHON set "python=%NEST_PYTHON%"
where /q "%python%" 2> nul || if not exist "%python%" (
    echo error: no Python for this: "%python%". Run python scripts\setup.py in "%root%", or set NEST_PYTHON 1>&2
    exit /b 3
)
set "PYTHONPATH="
set "PYTHONHOME="
if not defined OMP_NUM_THREADS set "OMP_NUM_THREADS=1"
"%python%" "%root%\scripts\train_nest.py" %*
exit /b %ERRORLEVEL%
