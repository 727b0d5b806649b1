@echo off
rem Train with NVIDIA NeMo and record it. Arguments are configuration overrides, Hydra's syntax:
rem     scripts\nemo.bat size=tiny save_steps=0,1,2 batches=3 overwrite=true
rem Runs in .venv\nemo-RELEASE, for the release that NEMO_VERSION or else docker\.env names, or on the Python that
rem NEMO_PYTHON names; from any folder.
setlocal
for %%I in ("%~dp0..") do set "root=%%~fI"
for /f "usebackq tokens=2 delims==" %%V in ("%root%\docker\.env") do set "release=%%V"
if defined NEMO_VERSION set "release=%NEMO_VERSION%"
set "python=%root%\.venv\nemo-%release%\Scripts\python.exe"
if defined NEMO_PYTHON set "python=%NEMO_PYTHON%"
where /q "%python%" 2> nul || if not exist "%python%" (
    echo error: no Python for this: "%python%". Run python scripts\setup.py with NEMO_VERSION=%release% in "%root%", or set NEMO_PYTHON 1>&2
    exit /b 3
)
set "PYTHONPATH="
set "PYTHONHOME="
if not defined OMP_NUM_THREADS set "OMP_NUM_THREADS=1"
"%python%" "%root%\scripts\train_nemo.py" %*
exit /b %ERRORLEVEL%
